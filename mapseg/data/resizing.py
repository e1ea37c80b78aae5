"""Resizes images and labels, in both conversion and training."""

import cv2
import numpy as np


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image [H, W] or [H, W, 3] uint8 to (height, width); shrinks by averaging."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=method)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label [H, W] uint8 to (height, width).

    Each pixel gets the id of the source pixel under its centre; on the border between two source
    pixels, that is the later one. OpenCV's `INTER_NEAREST_EXACT` picks either, depending on its
    version.
    """
    if label.shape == size:
        return label
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, label.shape, strict=True)
    )
    return label.take(rows, axis=0).take(columns, axis=1)


def resize_pair(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image and its label, whose sizes may differ, to (height, width)."""
    return resize_image(image, size), resize_label(label, size)
