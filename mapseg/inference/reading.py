"""Decodes images and videos."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np


def open_video(path: Path) -> Any:
    """Opens a video for decoding; ValueError where OpenCV cannot."""
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"{path}: must be a video that OpenCV can decode")
    return capture


def read_image(path: Path) -> np.ndarray:
    """Decodes an image file of any kind that OpenCV knows.

    Grey becomes three equal channels, 16 bits become 8, transparency is dropped, and a rotation
    noted in EXIF is carried out, so that results stand upright.

    Returns:
      [H, W, 3] uint8 RGB.

    Raises:
      ValueError: it cannot be read, is cut off, or is no image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if image is None:
        raise ValueError(f"{path}: cannot be decoded: cut off, or not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class FrameReader:
    """Decodes frames. A video is decoded once from its start: seeking is not exact."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._capture: Any = None
        self._next = 0

    def read(self, path: Path, number: int | None) -> np.ndarray:
        """Returns an image, or frame `number` of a video; those of a video in rising order.

        Raises:
          ValueError: as `read_image`.
        """
        if number is None:
            return read_image(path)
        if path != self._path:
            self._path, self._capture, self._next = path, open_video(path), 0
        while self._next < number:
            self._capture.grab()
            self._next += 1
        whole, image = self._capture.read()
        self._next += 1
        if not whole:
            raise ValueError(f"{path}: frame {number} cannot be decoded")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
