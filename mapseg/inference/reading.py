"""Decodes images and videos, strictly: what is damaged or ambiguous is refused."""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from mapseg.data.encoded import JPEG, PNG, check_jpeg, check_single, several_message

# Cameras store 10, 12 or 14 bits in 16: where no value needs all, nobody can tell how bright it is.
SMALLEST_16_BIT_PEAK = 2**14
_PPM_HEAD = re.compile(rb"P([56])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")
_MISREAD_TIFF_MODES = ("RGBA", "RGBa", "LA", "La", "PA", "LAB")  # OpenCV gives other colours
DEPTH_MESSAGE = (
    "an image must have 8 bits, or use the range of 16: its values may be a camera's 10, 12 or 14 "
    "bits. Remedy: scale it to 8 bits"
)

# How much less than announced a video may have. AVI and MP4 announce the pictures' own length,
# other containers that of the longest track, and sound often ends later.
_SLACK_FRAMES, _SLACK_SECS = 3, 1.0
_TRIES = 100  # to decode anything behind a frame that cannot be
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class VideoLength(NamedTuple):
    """How many frames of a video can be decoded.

    Attributes:
      frames: decodable ones, from the start.
      announced: as many as its header says, or its duration and rate; 0 where that is unknown.
      is_whole: nothing shows that others are damaged or missing.
    """

    frames: int
    announced: int
    is_whole: bool


def open_video(path: Path) -> Any:
    """Opens a video for decoding; ValueError where OpenCV cannot."""
    check_utf8(path)
    _check_regular(path)
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"{path}: must be a video that OpenCV can decode")
    return capture


def measure_video(path: Path) -> VideoLength:
    """Decodes a video from its start to its end, and compares that with what it announces.

    It is damaged where frames can be decoded behind one that cannot, or where it has fewer frames
    than announced and a gap in time, at its end or within. Fewer frames alone show nothing: the
    number is an estimate where the rate varies, and counts frames that an edit list cuts off.
    Damage that the decoder conceals goes unnoticed.

    Raises:
      ValueError: OpenCV cannot open it, or returns its frames as they are not.
    """
    _check_converted(path)
    length = _measure(path)
    if not length.is_whole:  # cut without encoding it anew, as by `ffmpeg -ss 10 -c copy`?
        with _ignoring_edit_lists():
            uncut = _measure(path)
        length = length._replace(is_whole=uncut.is_whole)
    return length


def _measure(path: Path) -> VideoLength:
    capture = open_video(path)
    fps, announced = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    frames, end, gap = 0, 0.0, 0.0
    while capture.grab():
        now = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        gap = max(gap, now - end) if frames else 0.0
        frames, end = frames + 1, max(end, now)
    resumes = any(capture.grab() for _ in range(_TRIES))
    if not (0 < fps < math.inf and 0 < announced < math.inf):
        return VideoLength(frames, 0, not resumes)
    with path.open("rb") as file:
        head = file.read(8)
    exact = head.startswith(b"RIFF") or head.endswith(b"ftyp")
    second = max(fps * _SLACK_SECS, _SLACK_FRAMES)
    slack = _SLACK_FRAMES if exact else second
    lacks_end, lacks_middle = announced - end * fps - 1 > slack, gap * fps - 1 > second
    fewer = announced - frames > slack and (lacks_end or lacks_middle)
    return VideoLength(frames, int(announced), not (resumes or fewer))


def _check_converted(path: Path) -> None:
    """Refuses a video whose frames OpenCV returns as they are not.

    In place of interlaced ones it returns unset memory, which never changes; that of another
    capture is other memory. Of 16 bits it takes the upper 8, as of images.

    Raises:
      ValueError: it is one of these, or OpenCV cannot open it.
    """
    capture = open_video(path)
    _, first = capture.read()
    if first is not None and _is_16_bit(capture) and first.max() < SMALLEST_16_BIT_PEAK >> 8:
        raise ValueError(
            f"{path}: {DEPTH_MESSAGE}; got 16-bit frames up to {int(first.max()) << 8}"
        )
    whole, picture = first is not None, first
    while whole and np.array_equal(picture, first):
        whole, picture = capture.read()
    if first is None or whole:
        return
    _, again = open_video(path).read()  # a still
    if not first.any() or not np.array_equal(first, again):
        raise ValueError(
            f"{path}: a video must be progressive; got frames that never change, as OpenCV gives "
            "for interlaced ones. Remedy, if it is not black: ffmpeg -i IN -map 0:v -vf yadif "
            "-crf 10 OUT.mp4"
        )


def _is_16_bit(capture: Any) -> bool:
    # FFmpeg's codes of formats without a common name have the bits at one end: Y1 0 16, 16 0 1 Y.
    code = int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) & 0xFFFFFFFF
    return 16 in (code & 0xFF, code >> 24)


@contextmanager
def _ignoring_edit_lists() -> Iterator[None]:
    former = os.environ.get(_OPTIONS)
    os.environ[_OPTIONS] = "ignore_editlist;1"
    try:
        yield
    finally:
        os.environ.pop(_OPTIONS)
        if former is not None:
            os.environ[_OPTIONS] = former


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
      ValueError: it cannot be read, is damaged, cut off or no image, has several pages, so many
        pixels that they would fill the memory, or more than 8 bits of which it is unknown how
        bright they are.
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
    """Refuses a PPM that OpenCV would decode too dark, or of several pictures."""
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
        raise ValueError("cut off, or of a kind that OpenCV does not decode")
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
          ValueError: as `read_image`; a video cannot be decoded as far as this frame.
        """
        if number is None:
            return read_image(path)
        if path != self._path:
            self._path = None
            _check_converted(path)
            self._path, self._capture, self._next = path, open_video(path), 0
        while self._next < number:
            self._capture.grab()
            self._next += 1
        whole, image = self._capture.read()
        self._next += 1
        if not whole:
            raise _damaged_video(path, number, self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _damaged_video(path: Path, number: int, announced: float) -> ValueError:
    if not number:
        return ValueError(
            f"{path}: its first frame cannot be decoded: it is damaged, or of a codec that OpenCV "
            "lacks. Remedy: fetch it again, or encode it anew: ffmpeg -i IN -map 0:v -crf 10 "
            "OUT.mp4"
        )
    count = f"{announced:.0f}" if announced > number else "more"
    return ValueError(
        f"{path}: a video must be decodable to its end; got {number} frames of {count}: the rest "
        "is damaged or missing, or its sound is longer. Remedy: fetch it again, or if this is all "
        "of it make a whole one: ffmpeg -i IN -map 0:v -crf 10 OUT.mp4"
    )
