"""Scores from pixel counts: confusion matrix, IoU, accuracy, precision.

Counts are summed over images: a split is scored by the sum, never by averaging image scores. The
definitions are those of the Mapillary Vistas and Cityscapes evaluators: pixels whose label is VOID
or an unevaluated class are ignored. Properties document where ours differ from theirs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mapseg.labels import VOID, LabelSet

_BAND_PX = 1 << 20


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts pixels by (label, prediction).

    Args:
      label: [H, W] uint8 ids below `num_classes`, or VOID, which is not counted.
      prediction: [H, W] uint8 ids below `num_classes`, or VOID for no class.
      num_classes: at most 255.

    Returns:
      [num_classes, num_classes + 1] int64; row = label, column = prediction, the last column for
      no class.

    Raises:
      ValueError: the shapes differ, or an id is out of range.
    """
    if label.shape != prediction.shape:
        raise ValueError(
            f"prediction must have the label's shape {label.shape}; got {prediction.shape}"
        )
    pairs = count_pairs(label, prediction)
    pairs[VOID] = 0
    for name, pixels in (("label", pairs.sum(1)), ("prediction", pairs.sum(0))):
        ids = np.flatnonzero(pixels[:VOID])
        if ids.size and ids[-1] >= num_classes:
            raise ValueError(
                f"{name} ids must be 0 to {num_classes - 1}, or {VOID}; got {ids[0]} to {ids[-1]}"
            )
    return pairs[:num_classes, [*range(num_classes), VOID]]


def count_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Counts the pairs of values of two arrays [H, W] uint8: [256, 256] int64."""
    counts = np.zeros(256 * 256, np.int64)
    rows, columns = first.reshape(-1), second.reshape(-1)
    for start in range(0, rows.size, _BAND_PX):  # bincount needs 8 bytes for each pixel
        band = rows[start : start + _BAND_PX].astype(np.uint16) << 8
        band |= columns[start : start + _BAND_PX]
        counts += np.bincount(band, minlength=counts.size)
    return counts.reshape(256, 256)


@dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix.

    Scores by class are nan for classes without label pixels; means are over the evaluated classes
    with label pixels, and nan if there are none.

    Attributes:
      confusion: [C, C + 1] int64 from `confusion_matrix`; [C, C] if every pixel has a prediction.
      label_set: class names, and which classes are evaluated.
    """

    confusion: np.ndarray
    label_set: LabelSet

    def __post_init__(self) -> None:
        classes = len(self.label_set.classes)
        if self.confusion.shape not in ((classes, classes), (classes, classes + 1)):
            raise ValueError(
                f"confusion must be [{classes}, {classes + 1}]; got {list(self.confusion.shape)}"
            )
        padding = classes + 1 - self.confusion.shape[1]
        object.__setattr__(self, "confusion", np.pad(self.confusion, ((0, 0), (0, padding))))

    @cached_property
    def scored_confusion(self) -> np.ndarray:
        """[C, C + 1] int64: the confusion matrix without the rows of unevaluated classes."""
        return self.confusion * self.label_set.evaluated[:, np.newaxis]

    @cached_property
    def hits(self) -> np.ndarray:
        """[C] int64: correctly predicted pixels of each class."""
        return np.diag(self.scored_confusion)

    @cached_property
    def label_pixels(self) -> np.ndarray:
        """[C] int64: pixels of each evaluated class in the labels."""
        return self.scored_confusion.sum(1)

    @cached_property
    def predicted_pixels(self) -> np.ndarray:
        """[C] int64: pixels predicted as each class, where the label is evaluated."""
        return self.scored_confusion.sum(0)[:-1]

    @property
    def present(self) -> np.ndarray:
        """[C] bool: evaluated classes with at least one label pixel."""
        return self.label_pixels > 0

    @property
    def iou(self) -> np.ndarray:
        """[C] float64: intersection over union.

        Predicting an unevaluated class, or none, is an error; `official` ignores it.
        """
        return class_iou(self.label_pixels, self.predicted_pixels, self.hits)

    @property
    def recall(self) -> np.ndarray:
        """[C] float64: share of the label's pixels that are predicted correctly."""
        return self._by_class(self.hits, self.label_pixels)

    @property
    def precision(self) -> np.ndarray:
        """[C] float64: share of the predicted pixels that are correct; 0 if none is predicted."""
        return self._by_class(self.hits, self.predicted_pixels)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that are present in the labels."""
        return mean_of(self.iou)

    @property
    def occurring_mean_iou(self) -> float:
        """Mean IoU over the classes that occur in labels or predictions.

        This is the mean of the Vistas and Cityscapes evaluators: a class that is predicted but not
        labelled counts as 0. On a whole validation split it rarely differs from `mean_iou`.
        """
        predicted = (self.predicted_pixels > 0) & self.label_set.evaluated
        occurring = int((self.present | predicted).sum())
        return float(np.nansum(self.iou) / occurring) if self.present.any() else math.nan

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled, evaluated pixels that are predicted correctly."""
        total = int(self.scored_confusion.sum())
        return float(self.hits.sum() / total) if total else math.nan

    @property
    def mean_class_accuracy(self) -> float:
        """Mean recall over the classes."""
        return mean_of(self.recall)

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU, each class weighted by its label pixels."""
        if not self.present.any():
            return math.nan
        return float(np.nansum(self.iou * self.label_pixels) / self.label_pixels.sum())

    @property
    def official(self) -> "Scores":
        """The scores without predictions of unevaluated classes or of none.

        These are the semantics of the Vistas evaluator, which deletes the rows and columns of
        unevaluated labels; its mean is `occurring_mean_iou`.
        """
        kept = np.append(self.label_set.evaluated, False)
        return Scores(self.confusion * kept, self.label_set)

    @property
    def majority_mean_iou(self) -> float:
        """Mean IoU of predicting the most frequent class everywhere."""
        pixels = self.label_pixels
        if not pixels.any():
            return math.nan
        return float(pixels.max() / pixels.sum() / self.present.sum())

    def to_json(self) -> dict[str, Any]:
        """Returns the scores by name; nan becomes null."""
        official = self.official
        return {
            "mean_iou": to_number(self.mean_iou),
            "pixel_accuracy": to_number(self.pixel_accuracy),
            "mean_class_accuracy": to_number(self.mean_class_accuracy),
            "frequency_weighted_iou": to_number(self.frequency_weighted_iou),
            "occurring_mean_iou": to_number(self.occurring_mean_iou),
            "official_mean_iou": to_number(official.occurring_mean_iou),
            "official_present_mean_iou": to_number(official.mean_iou),
            "official_pixel_accuracy": to_number(official.pixel_accuracy),
            "majority_mean_iou": to_number(self.majority_mean_iou),
            "iou": dict(zip(self.label_set.names, map(to_number, self.iou), strict=True)),
            "classes_present": int(self.present.sum()),
            "label_set": self.label_set.name,
            "confusion": self.confusion.tolist(),
        }

    def total_lines(self) -> Iterable[str]:
        """Yields lines of text with the scores over all classes."""
        yield (
            f"mean IoU {self.mean_iou:.2%} over {int(self.present.sum())} classes present, "
            f"pixel accuracy {self.pixel_accuracy:.2%}"
        )
        official = self.official
        if official.present.any() and (official.confusion != self.confusion).any():
            yield (
                f"official semantics: mean IoU {official.mean_iou:.2%}, "
                f"pixel accuracy {official.pixel_accuracy:.2%}"
            )
        if official.occurring_mean_iou < official.mean_iou:
            yield (
                "official evaluator, which counts predicted classes without labels as 0: mean IoU "
                f"{official.occurring_mean_iou:.2%}"
            )

    def class_lines(self) -> Iterable[str]:
        """Yields a line of text for each class that is present, by descending IoU."""
        total = max(int(self.label_pixels.sum()), 1)
        iou = self.iou
        for i in sorted(np.flatnonzero(self.present), key=lambda i: -iou[i]):
            name = self.label_set.names[i]
            yield f"  {iou[i]:7.2%}  {name}  ({self.label_pixels[i] / total:.2%} of the pixels)"

    def _by_class(self, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.where(self.present, numerator / np.maximum(denominator, 1), np.nan)


def class_iou(label: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Returns intersection over union, of arrays of pixel counts; nan where there is no label."""
    return np.where(label > 0, hits / np.maximum(label + predicted - hits, 1), np.nan)


def to_number(value: float) -> float | None:
    """Returns a number for JSON, which has no nan: None in its place."""
    return None if math.isnan(value) else float(value)


def mean_of(values: np.ndarray) -> float:
    """Returns the mean of the values that are not nan; nan if there are none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
