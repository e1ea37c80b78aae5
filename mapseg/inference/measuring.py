"""Counts the frames of videos that can be decoded, and finds signs of damage."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2

from mapseg.inference.containers import count_packets
from mapseg.inference.reading import check_converted, open_video

# How much shorter than announced a video may be. AVI and MP4 announce the length of the video
# track, other containers that of the longest track, and the audio often ends later.
_SLACK_FRAMES, _SLACK_SECS = 3, 1.0
_TRIES = 100  # attempts to decode another frame after one that cannot be decoded
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class VideoLength(NamedTuple):
    """How many frames of a video can be decoded.

    Attributes:
      frames: number of decodable frames, from the start.
      announced: number of frames by its header, or by its duration and rate; 0 if unknown.
      is_whole: there is no sign of damaged or missing frames.
    """

    frames: int
    announced: int
    is_whole: bool


def video_length(path: Path) -> VideoLength:
    """Returns the length of a video, without decoding it where its index leaves no doubt.

    Damage inside its frames then shows only when they are decoded.

    Raises:
      ValueError: as in `measure_video`.
    """
    if check_converted(path) and (count := count_packets(path)):
        return VideoLength(count, count, True)
    return measure_video(path)


def measure_video(path: Path) -> VideoLength:
    """Decodes a whole video and compares its length with the announced one.

    A video is damaged if frames after an undecodable one can be decoded, or if it has fewer frames
    than announced and a gap in time, inside or at its end. Fewer frames alone prove nothing: the
    number is an estimate if the frame rate varies, and includes frames that an edit list cuts off.
    Damage that the decoder conceals is not detected.

    Raises:
      ValueError: OpenCV cannot open it, or returns wrong frames.
    """
    check_converted(path)
    length = _measure(path)
    if not length.is_whole:  # cut without re-encoding, as by `ffmpeg -ss 10 -c copy`?
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
    is_short = announced - frames > slack and (lacks_end or lacks_middle)
    return VideoLength(frames, int(announced), not (resumes or is_short))


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
