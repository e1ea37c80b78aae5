"""The values that the page's template and script show."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mapseg.evaluation.bootstrap import Interval, intervals
from mapseg.evaluation.evaluation import Evaluation
from mapseg.evaluation.report.command import differing_options
from mapseg.evaluation.report.comparing import Compared
from mapseg.evaluation.report.curves import history_curves
from mapseg.evaluation.report.findings import Confusion, class_rows
from mapseg.evaluation.report.heat import Heat, heat_of
from mapseg.evaluation.report.source import Source
from mapseg.evaluation.report.thumbnails import Picture
from mapseg.evaluation.scores import to_number
from mapseg.pages.rendering import hex_color, percent, short_names
from mapseg.pages.svg import SERIES
from mapseg.progress import duration
from mapseg.runs.history import training_secs

_VIEWS = ("Image", "Prediction", "Ground truth", "Errors")


class Figure(NamedTuple):
    """A headline figure: its value and interval, and what it means."""

    name: str
    value: float
    interval: Interval | None
    meaning: str


def headline(evaluation: Evaluation) -> list[Figure]:
    """Lists the headline figures of an evaluation."""
    ends = intervals(evaluation)
    known = bool(evaluation.images)
    figures = [
        Figure(
            "Mean IoU",
            evaluation.mean_iou,
            ends.mean_iou if known else None,
            f"over the {int(evaluation.present.sum())} classes in the labels; predicting the most "
            f"frequent class everywhere scores {percent(evaluation.majority_mean_iou)}",
        ),
        Figure(
            "Pixel accuracy",
            evaluation.pixel_accuracy,
            ends.pixel_accuracy if known else None,
            "share of the labelled pixels that are correct",
        ),
    ]
    if evaluation.has_details:
        figures.append(
            Figure(
                "Boundary IoU",
                evaluation.mean_boundary_iou,
                ends.mean_boundary_iou,
                "IoU near contours only, mean over the classes",
            )
        )
    figures.append(
        Figure(
            "Official mean IoU",
            evaluation.official.occurring_mean_iou,
            None,
            "as the Vistas and Cityscapes evaluators compute it: classes that are predicted but "
            "not labelled count as 0",
        )
    )
    return figures


def training_facts(source: Source) -> list[tuple[str, str]]:
    """Lists what was trained on what, and for how long."""
    run, train = source.run, source.run.train
    facts = [
        ("Network", f"{run.model.encoder}, output stride {run.model.output_stride}"),
        ("Initial weights", train.init_from or run.model.encoder_weights),
        ("Classes", f"{len(run.label_set.classes)} ({run.label_set.name})"),
        ("Trained on", f"split {train.train_split}, records {run.records_digest[:12]}"),
        (
            "Crops",
            f"{train.batch_size} per step, {train.crop_height} x {train.crop_width} pixels",
        ),
        ("Loss, optimizer", f"{train.loss}, {train.optimizer}, {train.precision}"),
    ]
    if source.rows:
        last = int(source.rows[-1]["step"])
        facts.append(("Steps", f"{last:,} of {train.steps:,}"))
        if secs := training_secs(source.rows, train.batch_size):
            rate = last * train.batch_size / secs
            facts.append(("Training time", f"{duration(secs)}, {rate:.1f} images/s"))
    if run.machine:
        facts.append(("Machine", run.machine))
    return facts


def run_values(sources: Sequence[Source], compared: Sequence[Compared]) -> dict[str, Any]:
    """Returns the template's values about the runs: the report's, then the compared ones."""
    run = sources[0].run
    histories = {source.name: source.rows for source in sources}
    comparisons = [None, *compared]
    return {
        "source": sources[0],
        "names": [*short_names(run.label_set.names), "no class"],
        "facts": training_facts(sources[0]),
        "curves": history_curves(histories, run.train.loss_smoothing),
        "runs": [_run_row(*pair) for pair in zip(sources, comparisons, strict=True)],
        "series": SERIES,
        "compared": compared,
        "differing": [(s.name, differing_options(run, s.run)) for s in sources[1:]],
    }


def _run_row(source: Source, compared: Compared | None) -> dict[str, Any]:
    evaluation, rows = source.evaluation, source.rows
    return {
        "name": source.name,
        "mean_iou": evaluation.mean_iou if evaluation else None,
        "interval": intervals(evaluation).mean_iou if evaluation and evaluation.images else None,
        "pixel_accuracy": evaluation.pixel_accuracy if evaluation else None,
        "scored_step": source.facts.get("step"),
        "last_step": int(rows[-1]["step"]) if rows else None,
        "time": duration(training_secs(rows, source.run.train.batch_size)) if rows else None,
        "compared": compared,
    }


def score_values(
    evaluation: Evaluation | None, confusions: Sequence[Confusion], compared: Sequence[Compared]
) -> dict[str, Any]:
    """Returns the template's values about scores; empty lists if there is no evaluation."""
    if evaluation is None:
        return {"figures": [], "classes": [], "absent": [], "confusions": [], "heat": None}
    label_set = evaluation.label_set
    baseline = next((c.comparison for c in compared if c.comparison), None)
    present = zip(label_set.classes, evaluation.present, strict=True)
    return {
        "figures": headline(evaluation),
        "classes": class_rows(evaluation, intervals(evaluation), baseline and baseline.iou),
        "absent": [c.name for c, is_present in present if c.evaluate and not is_present],
        "confusions": [(c, [evaluation.images[i].name for i in c.images]) for c in confusions],
        "heat": heat_of(evaluation),
    }


def image_values(shown: Sequence[Source], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Returns the template's values about images.

    Args:
      shown: the report's run, then those whose predictions are shown too.
      pictures: of the images.
    """
    evaluation = shown[0].evaluation
    cards = []
    if evaluation is not None:
        scores = evaluation.image_mean_iou
        for picture in pictures:
            name, score = evaluation.images[picture.place].name, float(scores[picture.place])
            cards.append({"name": name, "score": score, "picture": picture})
    return {
        "cards": cards,
        "card_of_place": {picture.place: i for i, picture in enumerate(pictures)},
        "views": [*_VIEWS, *(other.name for other in shown[1:])],
    }


def script_data(
    shown: Sequence[Source], pictures: Sequence[Picture], heat: Heat | None
) -> dict[str, Any]:
    """Returns the values of the page's script; see `image_values`."""
    evaluation, classes = shown[0].evaluation, shown[0].run.label_set.classes
    names = short_names([c.name for c in classes])
    return {
        "classes": [
            {"name": name, "color": hex_color(c.color), "scored": c.evaluate}
            for c, name in zip(classes, names, strict=True)
        ],
        "heat": heat.to_json() if heat else None,
        "pictures": [_picture(picture, evaluation) for picture in pictures if evaluation],
    }


def _picture(picture: Picture, evaluation: Evaluation) -> dict[str, Any]:
    iou = evaluation.image_iou[picture.place]
    image = evaluation.images[picture.place]
    return {
        "name": image.name,
        "score": to_number(evaluation.image_mean_iou[picture.place]),
        "iou": {int(c): round(float(iou[c]), 4) for c in np.flatnonzero(~np.isnan(iou))},
        "cells": image.confusion.tolist(),
        "label": picture.label,
        "predictions": picture.predictions,
    }
