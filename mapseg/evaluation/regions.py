"""Recall of label pixels by the area of the connected region that they are in."""

from collections.abc import Iterable

import cv2
import numpy as np

# Regions below 100 px, below 1000 px, ..., and the rest.
AREA_EDGES_PX = (100, 1_000, 10_000, 100_000)


def region_counts(
    label: np.ndarray, prediction: np.ndarray, classes: Iterable[int]
) -> dict[int, np.ndarray]:
    """Counts the label pixels of each class, and the correct ones, by the area of their region.

    A region is a set of 8-connected pixels with the same label.

    Args:
      label: [H, W] uint8 ids.
      prediction: [H, W] uint8 ids.
      classes: ids to count.

    Returns:
      By id: [len(AREA_EDGES_PX) + 1, 2] int64 pixels and correct pixels, by ascending area.
    """
    counts = {}
    for class_id in classes:
        mask = (label == class_id).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = slice(top, top + height), slice(left, left + width)
        total, regions = cv2.connectedComponents(mask[box], connectivity=8)
        labelled = mask[box] > 0
        inside = regions[labelled]
        correct = inside[prediction[box][labelled] == class_id]
        areas = np.bincount(inside, minlength=total)
        bins = np.digitize(areas, AREA_EDGES_PX)
        found = np.bincount(correct, minlength=total)
        counts[class_id] = np.stack(
            [
                np.bincount(bins, pixels, len(AREA_EDGES_PX) + 1).astype(np.int64)
                for pixels in (areas, found)
            ],
            axis=1,
        )
    return counts
