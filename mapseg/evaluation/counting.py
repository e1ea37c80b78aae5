"""Counts everything that scores need on one image."""

from dataclasses import dataclass

import numpy as np

from mapseg.evaluation.boundaries import boundary_counts
from mapseg.evaluation.regions import region_counts
from mapseg.evaluation.scores import Scores, confusion_matrix
from mapseg.labels import VOID, LabelSet

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ImageCounts:
    """The counts of one image, sparse: most classes are in few images.

    Attributes:
      name: name of the image.
      confusion: [n, 3] int64 (label, prediction, pixels); the prediction of no class is C.
      boundary: [n, 3] int64 (class, intersection, union) of boundary pixels; None if not counted.
      regions: [n, 4] int64 (class, area bin, pixels, correct pixels); None if not counted.
      calibration: [CALIBRATION_BINS, 3] float64 (pixels, correct pixels, sum of probabilities), by
        the probability of the predicted class; None if there are no probabilities.
    """

    name: str
    confusion: np.ndarray
    boundary: np.ndarray | None = None
    regions: np.ndarray | None = None
    calibration: np.ndarray | None = None

    def matrix(self, classes: int) -> np.ndarray:
        """Returns the dense confusion matrix: [classes, classes + 1] int64."""
        matrix = np.zeros((classes, classes + 1), np.int64)
        matrix[self.confusion[:, 0], self.confusion[:, 1]] = self.confusion[:, 2]
        return matrix


def to_cells(matrix: np.ndarray) -> np.ndarray:
    """Returns the nonzero entries of a matrix: [n, 3] int64 (row, column, value)."""
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns]], axis=1).astype(np.int64)


def count_image(
    name: str,
    label: np.ndarray,
    prediction: np.ndarray,
    label_set: LabelSet,
    *,
    details: bool = False,
    probability: np.ndarray | None = None,
) -> ImageCounts:
    """Counts the pixels of one image.

    Args:
      name: name of the image.
      label: [H, W] uint8 train ids or VOID.
      prediction: [H, W] uint8 train ids, VOID for no class.
      label_set: the classes; unevaluated ones count only in the confusion matrix.
      details: also count boundaries and regions.
      probability: [H, W] float32 probability of the predicted class, for the calibration.

    Returns:
      The counts.

    Raises:
      ValueError: the shapes differ, or an id is out of range.
    """
    matrix = confusion_matrix(label, prediction, len(label_set.classes))
    confusion = to_cells(matrix)
    if not details:
        return ImageCounts(name, confusion)
    evaluated = np.zeros(256, bool)
    evaluated[: len(label_set.classes)] = label_set.evaluated
    scored = evaluated[label]
    label, prediction = np.where(scored, label, VOID), np.where(scored, prediction, VOID)
    scores = Scores(matrix, label_set)
    labelled = np.flatnonzero(scores.present)
    predicted = np.flatnonzero(scores.predicted_pixels * label_set.evaluated)
    boundary = boundary_counts(label, prediction, np.union1d(labelled, predicted))
    regions = region_counts(label, prediction, labelled)
    return ImageCounts(
        name,
        confusion,
        _rows([(c, *counts) for c, counts in boundary.items()], 3),
        _rows([(c, i, *n) for c, rows in regions.items() for i, n in enumerate(rows) if n[0]], 4),
        None if probability is None else _calibration(label, prediction, probability),
    )


def _rows(rows: list[tuple[int, ...]], columns: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, columns)


def _calibration(label: np.ndarray, prediction: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Counts scored pixels by the probability of their prediction: [CALIBRATION_BINS, 3]."""
    scored = label != VOID
    values, correct = probability[scored], (label == prediction)[scored]
    bins = np.minimum((values * CALIBRATION_BINS).astype(np.uint8), CALIBRATION_BINS - 1)
    sums = [np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, correct, values)]
    return np.stack(sums, axis=1).astype(np.float64)
