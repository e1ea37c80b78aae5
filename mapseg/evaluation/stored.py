"""Evaluations as files: one JSON file with everything, and tables of classes and images as CSV.

docs/evaluate.md documents the fields.
"""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.evaluation.bootstrap import intervals
from mapseg.evaluation.counting import CALIBRATION_BINS, ImageCounts
from mapseg.evaluation.evaluation import Evaluation, evaluation_of
from mapseg.evaluation.regions import AREA_EDGES_PX
from mapseg.evaluation.scores import to_number
from mapseg.files import write_text
from mapseg.labels import LabelSet
from mapseg.stored_json import read_stored_json

SCHEMA = 2  # 1, without a number, had no images and no details
_REMEDY = "evaluate again"


def evaluation_path(run_dir: Path, split: str, mapping: str = "") -> Path:
    """Returns the file of an evaluation in a run folder.

    Args:
      run_dir: the run folder.
      split: name of a split.
      mapping: name of the mapping that the predictions were translated with, if any.
    """
    name = f"{split}-{Path(mapping).stem}" if mapping else split
    return run_dir / "evaluation" / f"{name}.json"


def write_evaluation(path: Path, evaluation: Evaluation, facts: dict[str, Any]) -> None:
    """Writes an evaluation as `<path>`, `<stem>_classes.csv` and `<stem>_images.csv`.

    The JSON file is written last, so it never stands beside older tables.

    Args:
      path: the JSON file.
      evaluation: the scores and counts.
      facts: how they were measured: the first fields of the JSON file.

    Raises:
      WriteError: a file cannot be written.
    """
    fields = evaluation_fields(evaluation)
    write_text(path.with_name(f"{path.stem}_classes.csv"), _table(_class_rows(fields)))
    write_text(path.with_name(f"{path.stem}_images.csv"), _table(_image_rows(evaluation)))
    images = ",\n".join(f"  {json.dumps(_image(image))}" for image in evaluation.images)
    head = json.dumps({"schema": SCHEMA, **facts, **fields}, indent=1).removesuffix("\n}")
    write_text(path, f'{head},\n "images": [\n{images}\n ]\n}}\n')


def read_evaluation(path: Path, label_set: LabelSet | None = None) -> Evaluation:
    """Reads an evaluation.

    Args:
      path: a JSON file that `write_evaluation` wrote, in this version or an earlier one.
      label_set: the classes, for files of earlier versions, which lack them.

    Returns:
      The evaluation; without images if an earlier version wrote it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or lacks the classes.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such evaluation. Remedy: train_main.py --mode=evaluate, or "
            "python -m mapseg.evaluation.score"
        )
    return parse_evaluation(read_stored_json(path, _REMEDY), path, label_set)


def parse_evaluation(raw: Any, path: Path, label_set: LabelSet | None = None) -> Evaluation:
    """Builds the evaluation of a file that was read; see `read_evaluation`.

    Args:
      raw: the parsed JSON.
      path: the file, for messages.
      label_set: as in `read_evaluation`.
    """
    schema = raw.get("schema", 1) if isinstance(raw, dict) else None
    if schema not in (1, SCHEMA):
        raise ValueError(
            f"{path}: schema must be at most {SCHEMA}; got {schema!r:.40}. Remedy: use the version "
            "of mapseg that wrote it"
        )
    if schema == 1 and label_set is None:
        raise ValueError(
            f"{path}: must have the classes of its ids, which files of earlier versions lack. "
            f"Remedy: {_REMEDY}"
        )
    try:
        confusion = np.array(raw["confusion"], np.int64)
        if schema == 1 and label_set is not None:
            return Evaluation(confusion, label_set)
        label_set = LabelSet.from_json(raw["labels"], "labels")
        evaluation = evaluation_of([_read_image(image) for image in raw["images"]], label_set)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: must be as mapseg wrote it; got {error!r}. Remedy: {_REMEDY}"
        ) from error
    if not np.array_equal(evaluation.confusion, confusion):
        raise ValueError(
            f"{path}: confusion must be the sum of its images; it is not. Remedy: {_REMEDY}"
        )
    return evaluation


def evaluation_fields(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the fields of an evaluation file, without the images; nan becomes null."""
    ends = intervals(evaluation)
    by_class = {
        "iou": evaluation.iou,
        "iou_low": ends.iou[:, 0],
        "iou_high": ends.iou[:, 1],
        "boundary_iou": evaluation.boundary_iou,
        "precision": evaluation.precision,
        "recall": evaluation.recall,
    }
    classes = {
        name: {
            **{field: to_number(values[i]) for field, values in by_class.items()},
            "label_pixels": int(evaluation.label_pixels[i]),
            "predicted_pixels": int(evaluation.predicted_pixels[i]),
        }
        for i, name in enumerate(evaluation.label_set.names)
    }
    return {
        **evaluation.to_json(),
        "mean_iou_interval": [to_number(value) for value in ends.mean_iou],
        "mean_boundary_iou": to_number(evaluation.mean_boundary_iou),
        "calibration_error": to_number(evaluation.calibration_error),
        "classes": classes,
        "regions": _regions(evaluation) if evaluation.has_details else None,
        "calibration": _calibration(evaluation),
        "labels": evaluation.label_set.to_json(),
    }


def _regions(evaluation: Evaluation) -> list[dict[str, Any]]:
    edges = (1, *AREA_EDGES_PX, None)
    pixels, recall = evaluation.region_pixels[..., 0].sum(0), evaluation.recall_by_area
    return [
        {
            "from_px": edges[i],
            "below_px": edges[i + 1],
            "pixels": int(pixels[i]),
            "recall": to_number(recall[i]),
        }
        for i in range(len(pixels))
    ]


def _calibration(evaluation: Evaluation) -> list[dict[str, Any]] | None:
    if evaluation.calibration is None:
        return None
    return [
        {
            "from": i / CALIBRATION_BINS,
            "to": (i + 1) / CALIBRATION_BINS,
            "pixels": int(pixels),
            "accuracy": to_number(correct / pixels) if pixels else None,
            "confidence": to_number(total / pixels) if pixels else None,
        }
        for i, (pixels, correct, total) in enumerate(evaluation.calibration)
    ]


def _image(image: ImageCounts) -> dict[str, Any]:
    arrays = {name: value for name, value in vars(image).items() if name != "name"}
    return {
        "name": image.name,
        **{name: None if value is None else value.tolist() for name, value in arrays.items()},
    }


def _read_image(raw: dict[str, Any]) -> ImageCounts:
    def array(name: str, columns: int, kind: type = np.int64) -> np.ndarray | None:
        return None if raw[name] is None else np.array(raw[name], kind).reshape(-1, columns)

    return ImageCounts(
        str(raw["name"]),
        np.array(raw["confusion"], np.int64).reshape(-1, 3),
        array("boundary", 3),
        array("regions", 4),
        array("calibration", 3, np.float64),
    )


def _class_rows(fields: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for name, values in fields["classes"].items():
        yield {"class": name, **values}


def _image_rows(evaluation: Evaluation) -> Iterable[dict[str, Any]]:
    names = evaluation.label_set.names
    means, iou = evaluation.image_mean_iou, evaluation.image_iou
    for image, mean, values in zip(evaluation.images, means, iou, strict=True):
        by_class = {f"iou:{name}": to_number(v) for name, v in zip(names, values, strict=True)}
        yield {"image": image.name, "mean_iou": to_number(mean), **by_class}


def _table(rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
