"""Scores from pixel counts: confusion matrix, IoU, pixel accuracy.

Counts are summed over images: a split is scored by the sum, never by averaging image scores. The
definitions are those of the Mapillary Vistas and Cityscapes evaluators: pixels whose label is VOID
or an unevaluated class are ignored.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mapseg.labels import VOID, LabelSet


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts pixels by (label, prediction).

    Args:
      label: [...] uint8 ids below `num_classes`, or VOID.
      prediction: same shape, ids below `num_classes`; read only where the label is not VOID.
      num_classes: at most 255.

    Returns:
      [num_classes, num_classes] int64; row = label, column = prediction.

    Raises:
      ValueError: the shapes differ, or an id is out of range.
    """
    if label.shape != prediction.shape:
        raise ValueError(
            f"prediction must have the label's shape {label.shape}; got {prediction.shape}"
        )
    labelled = label != VOID
    rows, columns = (ids[labelled].astype(np.int64) for ids in (label, prediction))
    for name, ids in (("label", rows), ("prediction", columns)):
        if ids.size and not 0 <= ids.min() <= ids.max() < num_classes:
            raise ValueError(
                f"{name} ids must be 0 to {num_classes - 1}; got {ids.min()} to {ids.max()}"
            )
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix.

    Attributes:
      confusion: [C, C] int64 from `confusion_matrix`.
      label_set: class names, and which classes are evaluated.
    """

    confusion: np.ndarray
    label_set: LabelSet

    def __post_init__(self) -> None:
        classes = len(self.label_set.classes)
        if self.confusion.shape != (classes, classes):
            raise ValueError(
                f"confusion must be [{classes}, {classes}]; got {list(self.confusion.shape)}"
            )

    @cached_property
    def _counted(self) -> np.ndarray:
        return self.confusion * self.label_set.evaluated[:, np.newaxis]

    @property
    def present(self) -> np.ndarray:
        """[C] bool: evaluated classes with at least one label pixel."""
        return self._counted.sum(1) > 0

    @property
    def iou(self) -> np.ndarray:
        """[C] float64: intersection over union; nan for classes not present.

        Predicting an unevaluated class is an error; `official` ignores it.
        """
        hits = np.diag(self._counted)
        union = self._counted.sum(0) + self._counted.sum(1) - hits
        return np.where(self.present, hits / np.maximum(union, 1), np.nan)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the evaluated classes that are present; nan without labels."""
        return float(self.iou[self.present].mean()) if self.present.any() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled, evaluated pixels predicted correctly; nan without labels."""
        total = int(self._counted.sum())
        return float(np.diag(self._counted).sum() / total) if total else float("nan")

    @property
    def official(self) -> "Scores":
        """The scores without predictions of unevaluated classes, as in the Vistas evaluator."""
        return Scores(self.confusion * self.label_set.evaluated[np.newaxis], self.label_set)

    @property
    def majority_mean_iou(self) -> float:
        """Mean IoU of predicting the most frequent class everywhere."""
        pixels = self._counted.sum(1)
        if not pixels.any():
            return float("nan")
        return float(pixels.max() / pixels.sum() / self.present.sum())

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of `evaluation/<split>.json`; absent classes are null."""
        iou = [None if np.isnan(v) else float(v) for v in self.iou]
        return {
            "mean_iou": self.mean_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "official_mean_iou": self.official.mean_iou,
            "official_pixel_accuracy": self.official.pixel_accuracy,
            "majority_mean_iou": self.majority_mean_iou,
            "iou": dict(zip(self.label_set.names, iou, strict=True)),
            "classes_present": int(self.present.sum()),
            "label_set": self.label_set.name,
            "confusion": self.confusion.tolist(),
        }

    def lines(self) -> Iterable[str]:
        """Yields the lines of a text table: totals, then the classes by descending IoU."""
        yield (
            f"mean IoU {self.mean_iou:.2%} over {int(self.present.sum())} classes present, "
            f"pixel accuracy {self.pixel_accuracy:.2%}"
        )
        if not self.label_set.evaluated.all():
            yield (
                f"official semantics: mean IoU {self.official.mean_iou:.2%}, "
                f"pixel accuracy {self.official.pixel_accuracy:.2%}"
            )
        pixels = self._counted.sum(1)
        total = max(int(pixels.sum()), 1)
        iou = self.iou
        for i in sorted(np.flatnonzero(self.present), key=lambda i: -iou[i]):
            name = self.label_set.names[i]
            yield f"  {iou[i]:7.2%}  {name}  ({pixels[i] / total:.2%} of the pixels)"


def dump_scores(scores: Scores, **facts: Any) -> str:
    """Returns the JSON text of an evaluation: the scores and how they were measured."""
    return json.dumps({**facts, **scores.to_json()}, indent=1) + "\n"
