"""Boundary IoU: intersection over union of the pixels near the contours of a class.

Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, Cheng et al. 2021,
https://arxiv.org/abs/2103.16562, section 4: IoU of the two masks, each restricted to its pixels
within a distance of its own contour. It does not saturate for large objects, as IoU does.
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np

from mapseg.evaluation.scores import count_pairs
from mapseg.labels import VOID

DISTANCE_SHARE = 0.02  # of the image's diagonal, as in the paper
_SQUARE = np.ones((3, 3), np.uint8)


def boundary_counts(
    label: np.ndarray, prediction: np.ndarray, classes: Iterable[int]
) -> dict[int, tuple[int, int]]:
    """Counts the pixels near the contours of each class.

    The distance is 2 % of the image's diagonal, in the chessboard metric, which equals the paper's
    repeated erosions by 3x3 squares; the border of the image is part of the contour.

    Args:
      label: [H, W] uint8 ids.
      prediction: [H, W] uint8 ids. Set it to VOID where the label is VOID, so that an unlabelled
        region has the same contour in both.
      classes: ids to count, below VOID.

    Returns:
      By id: pixels of the intersection and of the union of the two boundary regions.
    """
    distance_px = max(1, round(DISTANCE_SHARE * math.hypot(*label.shape)))
    first, second = (_boundary(ids, distance_px) for ids in (label, prediction))
    pairs = count_pairs(first, second)
    both = np.diag(pairs)
    union = pairs.sum(0) + pairs.sum(1) - both
    return {c: (int(both[c]), int(union[c])) for c in classes}


def _boundary(ids: np.ndarray, distance_px: int) -> np.ndarray:
    """Sets the pixels that are further than a distance from the contour of their class to VOID.

    The contours of all classes are those of the id map: the pixels with a neighbour of another id.
    """
    inner = (cv2.erode(ids, _SQUARE) == cv2.dilate(ids, _SQUARE)).astype(np.uint8)
    inner[[0, -1]] = 0
    inner[:, [0, -1]] = 0
    depth = cv2.distanceTransform(inner, cv2.DIST_C, 3)  # 0 on the contour
    return np.where(depth < distance_px, ids, np.uint8(VOID))
