"""Decodes images and videos strictly: damaged or ambiguous files are rejected."""

import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from mapseg.data.encoded import JPEG, PNG, check_jpeg, check_single, several_message

# Cameras store 10, 12 or 14 bits in 16. If no value reaches this, the range is ambiguous.
SMALLEST_16_BIT_PEAK = 2**14
_PPM_HEAD = re.compile(rb"P([56])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")
_MISREAD_TIFF_MODES = ("RGBA", "RGBa", "LA", "La", "PA", "LAB")  # OpenCV returns wrong colours
DEPTH_MESSAGE = (
    "an image must have 8 bits, or use the full range of 16: its values may be a camera's 10, 12 "
    "or 14 bits. Remedy: scale it to 8 bits"
)


class EndedVideoError(ValueError):
    """A frame after the first one of its video that cannot be decoded."""


class Picture(NamedTuple):
    """A decoded frame.

    Attributes:
      image: [H, W, 3] uint8 RGB.
      secs: its time in its video, in seconds; None for an image.
    """

    image: np.ndarray
    secs: float | None


def open_video(path: Path) -> Any:
    """Opens a video, to be decoded upright; raises a ValueError if OpenCV cannot."""
    check_utf8(path)
    _check_regular(path)
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"{path}: must be a video that OpenCV can decode")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # not the default of every version
    return capture


def check_converted(path: Path) -> bool:
    """Rejects a video whose frames OpenCV decodes wrongly; returns whether it decodes the first.

    For interlaced frames OpenCV returns uninitialised memory: every frame is the same, and differs
    between captures. Of 16-bit values it returns the upper 8 bits, as for images.

    Raises:
      ValueError: it is interlaced, its 16-bit range is ambiguous, or OpenCV cannot open it.
    """
    capture = open_video(path)
    _, first = capture.read()
    if first is not None and _is_16_bit(capture) and first.max() < SMALLEST_16_BIT_PEAK >> 8:
        raise ValueError(
            f"{path}: {DEPTH_MESSAGE}; got 16-bit frames up to {int(first.max()) << 8}"
        )
    decoded, picture = first is not None, first
    while decoded and np.array_equal(picture, first):
        decoded, picture = capture.read()
    if first is None or decoded:
        return first is not None
    _, reread = open_video(path).read()  # the same, if the video shows a still image
    if not first.any() or not np.array_equal(first, reread):
        raise ValueError(
            f"{path}: a video must be progressive; got frames that never change, as OpenCV returns "
            "for interlaced ones. Remedy, if it is not black: ffmpeg -i IN -map 0:v -vf yadif "
            "-crf 10 OUT.mp4"
        )
    return True


def _is_16_bit(capture: Any) -> bool:
    # FFmpeg's codes for formats without a FourCC have the bits in the first or last byte:
    # Y1 0 16 or 16 0 1 Y.
    code = int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) & 0xFFFFFFFF
    return 16 in (code & 0xFF, code >> 24)


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise ValueError(f"{path}: must be a regular file")


def check_utf8(path: Path) -> None:
    """Rejects the path of a video if OpenCV would crash on it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: the path of a video must be UTF-8; got {os.fsencode(path)!r}. Remedy: rename "
            "it"
        ) from error


def read_image(path: Path) -> np.ndarray:
    """Decodes an image file of any format that OpenCV supports.

    Grey becomes three equal channels, 16 bits become 8, transparency is dropped, and the EXIF
    orientation is applied.

    Returns:
      [H, W, 3] uint8 RGB.

    Raises:
      ValueError: it cannot be read, is damaged, truncated or not an image, has several pages, has
        too many pixels to fit in memory, or has more than 8 bits and an ambiguous range.
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
    """Rejects files that OpenCV would decode in part, or with only a warning on stderr."""
    try:
        picture = Image.open(io.BytesIO(data))  # checks the number of pixels before decoding
    except Image.UnidentifiedImageError as error:
        raise ValueError("truncated, or not an image of a supported format") from error
    with picture:
        check_single(picture)
        if data.startswith(JPEG):
            check_jpeg(data)
        elif not data.startswith(PNG):  # OpenCV is strict with PNG
            picture.load()
            _check_ppm(data)
            if picture.format == "TIFF" and picture.mode in _MISREAD_TIFF_MODES:
                raise ValueError(
                    f"a TIFF must be grey or RGB, without transparency; got {picture.mode}. "
                    "Remedy: save it as RGB"
                )


def _check_ppm(data: bytes) -> None:
    """Rejects a PPM that OpenCV would decode too dark, or that holds several images."""
    head = _PPM_HEAD.match(data)
    if head is None:
        return
    kind, width, height, peak = map(int, head.groups())
    if peak not in (255, 65535):
        raise ValueError(
            f"the maximum in a PPM's header must be 255 or 65535; got {peak}. Remedy: scale it to "
            "8 bits"
        )
    size = width * height * (3 if kind == 6 else 1) * (2 if peak > 255 else 1)
    if data[head.end() + size :].lstrip()[:1] == b"P":
        raise ValueError(several_message("more"))


def _decode(data: bytes) -> np.ndarray:
    encoded = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise ValueError("truncated, or of a format that OpenCV does not decode")
    if image.dtype == np.uint8:
        return image
    peak = image.max()
    if image.dtype != np.uint16 or peak < SMALLEST_16_BIT_PEAK:
        raise ValueError(f"{DEPTH_MESSAGE}; got {image.dtype} up to {peak:g}")
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


class FrameReader:
    """Decodes frames. A video is decoded once, from its start, because seeking is not exact."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._capture: Any = None
        self._next = 0
        self._ended: Path | None = None

    def read(self, path: Path, number: int | None) -> Picture:
        """Returns an image, or frame `number` of a video; numbers must be in ascending order.

        Raises:
          EndedVideoError: an earlier frame of the video could not be decoded.
          ValueError: as in `read_image`, or a video cannot be decoded up to this frame.
        """
        if number is None:
            return Picture(read_image(path), None)
        if path == self._ended:
            raise EndedVideoError(f"{path}: frame {number} must follow decodable frames")
        if path != self._path:
            self._path = None
            check_converted(path)
            self._path, self._capture, self._next = path, open_video(path), 0
        while self._next < number and self._capture.grab():
            self._next += 1
        decoded, image = self._capture.read() if self._next == number else (False, None)
        if not decoded:
            self._ended = path
            raise _damaged_video(path, self._next, self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._next += 1
        secs = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return Picture(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), secs)


def _damaged_video(path: Path, number: int, announced: float) -> ValueError:
    if not number:
        return ValueError(
            f"{path}: its first frame cannot be decoded: it is damaged, or its codec is not "
            "supported by OpenCV. Remedy: copy it again, or re-encode it: ffmpeg -i IN -map 0:v "
            "-crf 10 OUT.mp4"
        )
    count = f"{announced:.0f}" if announced > number else "more"
    return ValueError(
        f"{path}: a video must be decodable to its end; got {number} frames of {count}: the rest "
        "is damaged or missing, or its audio is longer. Remedy: copy it again, or if it is "
        "complete, re-encode it: ffmpeg -i IN -map 0:v -crf 10 OUT.mp4"
    )
