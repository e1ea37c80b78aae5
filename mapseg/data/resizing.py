"""Resizing of images and labels, in conversion and training alike."""

import cv2
import numpy as np


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image [H, W] or [H, W, 3] uint8 to (height, width), by area where it shrinks."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=method)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label [H, W] uint8 to (height, width).

    Each pixel gets the id of the pixel under its own centre; where that lies on the border between
    two pixels, of the later one. OpenCV's `INTER_NEAREST_EXACT` picks either there, by its version.
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
    """Resizes both to (height, width); they may be of different sizes, of the same view."""
    return resize_image(image, size), resize_label(label, size)
