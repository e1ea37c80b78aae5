"""The scores of a set of images, with the counts of each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mapseg.evaluation.counting import CALIBRATION_BINS, ImageCounts
from mapseg.evaluation.regions import AREA_EDGES_PX
from mapseg.evaluation.scores import Scores, class_iou, mean_of
from mapseg.labels import LabelSet


@dataclass(frozen=True)
class Evaluation(Scores):
    """Scores, and the counts of each image that they are computed from.

    Built by `evaluation_of`. Scores that need details (boundaries, regions, calibration) are nan
    if these were not counted.

    Attributes:
      images: the counts of each image.
    """

    images: tuple[ImageCounts, ...] = ()

    @property
    def has_details(self) -> bool:
        """Whether boundaries and regions were counted."""
        return bool(self.images) and all(image.boundary is not None for image in self.images)

    @cached_property
    def image_counts(self) -> np.ndarray:
        """[N, C, 3] int64: label pixels, predicted pixels and hits by image and class."""
        each = [Scores(self._matrix(image), self.label_set) for image in self.images]
        counts = [np.stack([s.label_pixels, s.predicted_pixels, s.hits], axis=1) for s in each]
        return np.array(counts, np.int64).reshape(len(each), len(self.label_set.classes), 3)

    @property
    def image_iou(self) -> np.ndarray:
        """[N, C] float64: IoU in each image; nan for classes that it does not contain."""
        return class_iou(*np.moveaxis(self.image_counts, -1, 0))

    @property
    def image_mean_iou(self) -> np.ndarray:
        """[N] float64: mean IoU of each image over the classes that it contains."""
        return np.array([mean_of(iou) for iou in self.image_iou])

    @cached_property
    def boundary_counts(self) -> np.ndarray:
        """[N, C, 2] int64: boundary pixels in the intersection and union, by image and class."""
        counts = np.zeros((len(self.images), len(self.label_set.classes), 2), np.int64)
        for image, rows in zip(self.images, counts, strict=True):
            if image.boundary is not None:
                rows[image.boundary[:, 0]] = image.boundary[:, 1:]
        return counts

    @property
    def boundary_iou(self) -> np.ndarray:
        """[C] float64: boundary IoU of each class; see `boundaries`."""
        shared, union = self.boundary_counts.sum(0).T
        known = self.present & self.has_details
        return np.where(known, shared / np.maximum(union, 1), np.nan)

    @property
    def mean_boundary_iou(self) -> float:
        """Mean boundary IoU over the classes that are present in the labels."""
        return mean_of(self.boundary_iou)

    @cached_property
    def region_pixels(self) -> np.ndarray:
        """[C, areas, 2] int64: label pixels and correct ones by the area of their region."""
        counts = np.zeros((len(self.label_set.classes), len(AREA_EDGES_PX) + 1, 2), np.int64)
        for image in self.images:
            if image.regions is not None:
                np.add.at(counts, (image.regions[:, 0], image.regions[:, 1]), image.regions[:, 2:])
        return counts

    @property
    def recall_by_area(self) -> np.ndarray:
        """[areas] float64: recall of label pixels by the area of their region; see `regions`."""
        pixels, correct = self.region_pixels.sum(0).T
        return np.where(pixels > 0, correct / np.maximum(pixels, 1), np.nan)

    @property
    def calibration(self) -> np.ndarray | None:
        """[bins, 3] float64: pixels, correct pixels and sum of probabilities; None if unknown."""
        known = [image.calibration for image in self.images if image.calibration is not None]
        if not known or len(known) < len(self.images):
            return None
        return np.sum(known, axis=0).reshape(CALIBRATION_BINS, 3)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over pixels, in bins.

        Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.
        """
        if self.calibration is None or not self.calibration[:, 0].any():
            return math.nan
        pixels, correct, confidence = self.calibration.T
        return float(np.abs(correct - confidence).sum() / pixels.sum())

    def _matrix(self, image: ImageCounts) -> np.ndarray:
        return image.matrix(len(self.label_set.classes))


def evaluation_of(images: Sequence[ImageCounts], label_set: LabelSet) -> Evaluation:
    """Sums the counts of images.

    Args:
      images: their counts.
      label_set: the classes.

    Returns:
      The evaluation.
    """
    classes = len(label_set.classes)
    confusion = np.zeros((classes, classes + 1), np.int64)
    for image in images:
        confusion += image.matrix(classes)
    return Evaluation(confusion, label_set, tuple(images))
