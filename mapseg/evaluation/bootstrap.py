"""Confidence intervals of scores, and of differences between scores, by bootstrap over images.

The images of a split are drawn again with replacement, and the interval holds the middle of the
resulting scores. With few images the plain percentiles are too narrow; they are expanded as in
Hesterberg 2015, What Teachers Should Know About the Bootstrap
(https://arxiv.org/abs/1411.5279): further out by the ratio of Student's t to the normal quantile.
An interval describes how much the score would change with other images like these, not with another
training run.
"""

import math
import warnings
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from mapseg.evaluation.evaluation import Evaluation
from mapseg.evaluation.scores import class_iou

RESAMPLES = 2000
LEVEL = 0.95
# Without a true difference, all of n images, and so all resamples, still lie on the same side of
# zero in one of 2 ** (n - 1) cases. From 5 images on, this is about as rare as 1 - LEVEL.
MIN_IMAGES = 5


class Interval(NamedTuple):
    """Lower and upper end of a 95 % interval; nan if there are too few images."""

    low: float
    high: float


class Intervals(NamedTuple):
    """Intervals of scores.

    Attributes:
      mean_iou: of the mean IoU.
      iou: [C, 2] float64 low and high end; nan for classes in fewer than `MIN_IMAGES` images.
      pixel_accuracy: of the pixel accuracy.
      mean_boundary_iou: of the mean boundary IoU; nan if boundaries were not counted.
    """

    mean_iou: Interval
    iou: np.ndarray
    pixel_accuracy: Interval
    mean_boundary_iou: Interval


class Difference(NamedTuple):
    """The difference of two scores, and its interval.

    Attributes:
      value: the second score less the first.
      interval: of the difference.
    """

    value: float
    interval: Interval

    @property
    def is_real(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0


class Comparison(NamedTuple):
    """The difference of two evaluations of the same images.

    Attributes:
      mean_iou: of the mean IoU.
      iou: of each class's IoU; nan for classes without labels.
    """

    mean_iou: Difference
    iou: tuple[Difference, ...]


def intervals(evaluation: Evaluation) -> Intervals:
    """Returns 95 % intervals of scores.

    Args:
      evaluation: with the counts of each image.
    """
    images = len(evaluation.images)
    unknown = Interval(math.nan, math.nan)
    if images < MIN_IMAGES:
        return Intervals(unknown, np.full((len(evaluation.iou), 2), math.nan), unknown, unknown)
    weights, counts = _weights(images), evaluation.image_counts
    iou = _resampled_iou(counts, weights)
    label, hits = (weights @ counts[..., i] for i in (0, 2))
    accuracy = hits.sum(1) / np.maximum(label.sum(1), 1)
    boundary = unknown
    if evaluation.has_details:
        shared, union = (weights @ evaluation.boundary_counts[..., i] for i in range(2))
        scores = np.where(label > 0, shared / np.maximum(union, 1), np.nan)
        boundary = Interval(*_ends(_row_means(scores), images))
    return Intervals(
        Interval(*_ends(_row_means(iou), images)),
        _class_ends(iou, evaluation),
        Interval(*_ends(accuracy, images)) if label.any() else unknown,
        boundary,
    )


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compares two evaluations by a paired bootstrap: both are scored on the same resamples.

    Args:
      first: the baseline.
      second: an evaluation of the same images in the same classes.

    Returns:
      The differences, second less first, with 95 % intervals.

    Raises:
      ValueError: the images, labels or classes differ, or there are fewer than `MIN_IMAGES`.
    """
    second = _in_order_of(first, second)
    images = len(first.images)
    weights = _weights(images)
    before, after = (_resampled_iou(e.image_counts, weights) for e in (first, second))
    ends = _ends(_row_means(after) - _row_means(before), images)
    each = zip(second.iou - first.iou, _class_ends(after - before, first), strict=True)
    return Comparison(
        Difference(second.mean_iou - first.mean_iou, Interval(*ends)),
        tuple(Difference(float(value), Interval(*pair)) for value, pair in each),
    )


def _weights(images: int) -> np.ndarray:
    """Draws how often each image occurs in each resample: [RESAMPLES, images] float64."""
    rng = np.random.default_rng(0)
    return rng.multinomial(images, np.full(images, 1 / images), RESAMPLES).astype(float)


def _resampled_iou(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scores resamples: [RESAMPLES, C] IoU; nan for classes without labels."""
    return class_iou(*(weights @ counts[..., i] for i in range(3)))


def _row_means(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    counts = known.sum(1)
    return np.where(counts, np.where(known, values, 0).sum(1) / np.maximum(counts, 1), np.nan)


def _ends(values: np.ndarray, images: int) -> np.ndarray:
    """Returns the ends of the expanded 95 % interval of values [RESAMPLES]: [2]."""
    below = 100 * _tail(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no labels at all: nan
        return np.nanpercentile(values, (below, 100 - below))


def _class_ends(values: np.ndarray, evaluation: Evaluation) -> np.ndarray:
    """Returns the ends of each class: [C, 2]; nan where too few images contain it.

    They are expanded by the number of these images: the other ones do not describe the class.
    """
    ends = np.full((values.shape[1], 2), math.nan)
    for i, images in enumerate((evaluation.image_counts[..., 0] > 0).sum(0)):
        if images >= MIN_IMAGES:
            ends[i] = _ends(values[:, i], int(images))
    return ends


def _tail(images: int) -> float:
    """Returns the share of resamples below a 95 % interval, expanded for few images."""
    normal, freedom = NormalDist(), images - 1
    z = normal.inv_cdf((1 + LEVEL) / 2)
    # Student's t quantile by its expansion in 1 / freedom: Abramowitz and Stegun 26.7.5.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-t * math.sqrt(images / freedom))


def _in_order_of(first: Evaluation, second: Evaluation) -> Evaluation:
    """Returns the second evaluation with its images in the order of the first."""
    if first.label_set.names != second.label_set.names:
        raise ValueError(
            "evaluations must have the same classes to be compared; got "
            f"{len(first.label_set.names)} and {len(second.label_set.names)}, first difference: "
            f"{_first_difference(first.label_set.names, second.label_set.names)}. Remedy: evaluate "
            "both with the same label set"
        )
    by_name = {image.name: image for image in second.images}
    names = [image.name for image in first.images]
    if {*names} != by_name.keys():
        only = sorted({*names} ^ by_name.keys())
        raise ValueError(
            f"evaluations must be of the same images to be compared; got {len(names)} and "
            f"{len(by_name)} images, only in one: {', '.join(only[:3])}. Remedy: "
            "evaluate both on the same split"
        )
    if len(names) < MIN_IMAGES:
        raise ValueError(
            f"evaluations must have at least {MIN_IMAGES} images to be compared; got {len(names)}. "
            "Remedy: evaluate more images"
        )
    ordered = Evaluation(second.confusion, second.label_set, tuple(by_name[n] for n in names))
    differing = (first.image_counts[..., 0] != ordered.image_counts[..., 0]).any(1)
    if differing.any():
        raise ValueError(
            "evaluations must be of the same labels to be compared; the labels differ in "
            f"{int(differing.sum())} images, first {names[int(differing.argmax())]}. Remedy: "
            "evaluate both on the same records"
        )
    return ordered


def _first_difference(first: tuple[str, ...], second: tuple[str, ...]) -> str:
    pairs = zip((*first, "none"), (*second, "none"), strict=False)
    return next((f"{a} and {b}" for a, b in pairs if a != b), "none")
