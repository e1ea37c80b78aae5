"""Decodes images and videos, strictly: what is damaged or ambiguous is refused."""

import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mapseg.data.encoded import JPEG, PNG, check_jpeg

# Cameras store 10, 12 or 14 bits in 16: where no value needs all, nobody can tell how bright it is.
SMALLEST_16_BIT_PEAK = 2**14
_MISREAD_TIFF_MODES = ("RGBA", "RGBa", "LA", "La", "PA", "LAB")  # OpenCV gives other colours
DEPTH_MESSAGE = (
    "an image must have 8 bits, or use the range of 16: its values may be a camera's 10, 12 or 14 "
    "bits. Remedy: scale it to 8 bits"
)


def open_video(path: Path) -> Any:
    """Opens a video for decoding; ValueError where OpenCV cannot."""
    check_utf8(path)
    _check_regular(path)
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"{path}: must be a video that OpenCV can decode")
    return capture


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise ValueError(f"{path}: must be a regular file")


def check_utf8(path: Path) -> None:
    """Refuses the path of a video on which OpenCV would crash."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: the path of a video must be UTF-8; got {os.fsencode(path)!r}. Remedy: rename "
            "it"
        ) from error


def read_image(path: Path) -> np.ndarray:
    """Decodes an image file of any kind that OpenCV knows.

    Grey becomes three equal channels, 16 bits become 8, transparency is dropped, and a rotation
    noted in EXIF is carried out, so that results stand upright.

    Returns:
      [H, W, 3] uint8 RGB.

    Raises:
      ValueError: it cannot be read, is damaged, cut off or no image, has so many pixels that they
        would fill the memory, or has more than 8 bits of which it is unknown how bright they are.
    """
    try:
        _check_regular(path)
        data = path.read_bytes()
        _check(data)
        image = _decode(data)
    except (OSError, SyntaxError, ValueError, cv2.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded: {error}") from error
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _check(data: bytes) -> None:
    """Refuses what OpenCV would decode in part, or with a line on the error output alone."""
    try:
        picture = Image.open(io.BytesIO(data))  # its pixels are counted before any is decoded
    except Image.UnidentifiedImageError as error:
        raise ValueError("cut off, or not an image of a supported kind") from error
    with picture:
        if data.startswith(JPEG):
            check_jpeg(data)
        elif not data.startswith(PNG):  # OpenCV is strict with PNG
            picture.load()
            if picture.format == "TIFF" and picture.mode in _MISREAD_TIFF_MODES:
                raise ValueError(
                    f"a TIFF must be grey or RGB, without transparency; got {picture.mode}. "
                    "Remedy: save it as RGB"
                )


def _decode(data: bytes) -> np.ndarray:
    encoded = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise ValueError("cut off, or not an image")
    if image.dtype == np.uint8:
        return image
    peak = image.max()
    if image.dtype != np.uint16 or peak < SMALLEST_16_BIT_PEAK:
        raise ValueError(f"{DEPTH_MESSAGE}; got {image.dtype} up to {peak:g}")
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


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
            self._path, self._capture, self._next = None, open_video(path), 0
            self._path = path
        while self._next < number:
            self._capture.grab()
            self._next += 1
        whole, image = self._capture.read()
        self._next += 1
        if not whole:
            raise ValueError(f"{path}: frame {number} cannot be decoded")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
