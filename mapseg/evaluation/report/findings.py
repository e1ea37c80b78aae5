"""What an evaluation shows: scores by class, and the worst confusions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mapseg.evaluation.bootstrap import Difference, Intervals
from mapseg.evaluation.evaluation import Evaluation
from mapseg.labels import LabelClass

# Confusions below this share of all wrong pixels are not listed: 100 % of three pixels is noise.
_LEAST_OF_ERRORS = 1e-3
_IMAGES_OF_CONFUSION = 3


class ClassRow(NamedTuple):
    """The scores of one class that occurs in the labels.

    Attributes:
      label_class: its id, name and colour.
      iou: and the ends of its interval; these are nan if too few images contain the class.
      low: see `iou`.
      high: see `iou`.
      share: of the labelled pixels.
      boundary_iou: nan if boundaries were not counted.
      precision: share of the predicted pixels that are correct.
      recall: share of the label's pixels that are predicted correctly.
      change: against the compared run, if there is one.
    """

    label_class: LabelClass
    iou: float
    low: float
    high: float
    share: float
    boundary_iou: float
    precision: float
    recall: float
    change: Difference | None


class Confusion(NamedTuple):
    """Pixels of one class that are predicted as another.

    Attributes:
      label: id of the true class.
      prediction: id of the predicted class; the number of classes stands for no class.
      share: of the true class's pixels.
      of_errors: share of all wrong pixels.
      images: positions of the images with most of these pixels, at most three.
    """

    label: int
    prediction: int
    share: float
    of_errors: float
    images: tuple[int, ...]


def class_rows(
    evaluation: Evaluation, ends: Intervals, changes: Sequence[Difference] | None = None
) -> list[ClassRow]:
    """Lists the classes that occur in the labels, by descending IoU.

    Args:
      evaluation: the scores.
      ends: its intervals.
      changes: by class, against the compared run.
    """
    total = max(int(evaluation.label_pixels.sum()), 1)
    boundary, precision, recall = evaluation.boundary_iou, evaluation.precision, evaluation.recall
    rows = [
        ClassRow(
            evaluation.label_set.classes[i],
            float(evaluation.iou[i]),
            float(ends.iou[i, 0]),
            float(ends.iou[i, 1]),
            evaluation.label_pixels[i] / total,
            float(boundary[i]),
            float(precision[i]),
            float(recall[i]),
            changes[i] if changes else None,
        )
        for i in np.flatnonzero(evaluation.present).tolist()
    ]
    return sorted(rows, key=lambda row: -row.iou)


def worst_confusions(evaluation: Evaluation, count: int) -> list[Confusion]:
    """Lists the confusions with the highest share of their class, without negligible ones.

    Args:
      evaluation: the scores.
      count: the most to list.
    """
    wrong = evaluation.scored_confusion.copy()
    np.fill_diagonal(wrong, 0)
    errors = max(int(wrong.sum()), 1)
    shares = wrong / np.maximum(evaluation.label_pixels, 1)[:, np.newaxis]
    shares[wrong < _LEAST_OF_ERRORS * errors] = 0
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    cells = [divmod(int(cell), wrong.shape[1]) for cell in order]
    return [
        Confusion(a, b, float(shares[a, b]), wrong[a, b] / errors, _most_of(evaluation, a, b))
        for a, b in cells
        if shares[a, b] > 0
    ]


def _most_of(evaluation: Evaluation, label: int, prediction: int) -> tuple[int, ...]:
    """Returns the positions of the images with most pixels of a confusion."""
    pixels = np.zeros(len(evaluation.images), np.int64)
    for i, image in enumerate(evaluation.images):
        rows = image.confusion
        pixels[i] = rows[(rows[:, 0] == label) & (rows[:, 1] == prediction), 2].sum()
    order = np.argsort(-pixels, kind="stable")[:_IMAGES_OF_CONFUSION]
    return tuple(int(i) for i in order if pixels[i])
