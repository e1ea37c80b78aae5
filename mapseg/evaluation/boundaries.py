"""Boundary IoU: intersection over union of the pixels near the contours of a class.

Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, Cheng et al. 2021,
https://arxiv.org/abs/2103.16562, section 4: IoU of the two masks, each restricted to its pixels
within a distance of its own contour. It does not saturate for large objects, as IoU does.
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np

DISTANCE_SHARE = 0.02  # of the image's diagonal, as in the paper


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
      classes: ids to count.

    Returns:
      By id: pixels of the intersection and of the union of the two boundary regions.
    """
    distance_px = max(1, round(DISTANCE_SHARE * math.hypot(*label.shape)))
    counts = {}
    for class_id in classes:
        masks = [(ids == class_id).astype(np.uint8) for ids in (label, prediction)]
        # Outside the box of both masks nothing counts.
        left, top, width, height = cv2.boundingRect(masks[0] | masks[1])
        box = slice(top, top + height), slice(left, left + width)
        first, second = (_boundary(mask[box], distance_px) for mask in masks)
        counts[class_id] = int((first & second).sum()), int((first | second).sum())
    return counts


def _boundary(mask: np.ndarray, distance_px: int) -> np.ndarray:
    """Returns the pixels of a mask within a distance of its contour: [h, w] bool."""
    padded = np.pad(mask, 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]
    return (depth > 0) & (depth <= distance_px)
