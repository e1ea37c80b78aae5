"""Writes videos of overlays: one for each folder or video of frames."""

import contextlib
import errno
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from mapseg.inference.containers import read_tick
from mapseg.inference.films import AddPicture, h264_film, h264_size, load_encoder, mpeg4_film
from mapseg.inference.frames import Frame
from mapseg.inference.reading import open_video

FOLDER_FPS = 10.0  # frame rate for a folder of images: that of KITTI's cameras


class Videos:
    """Writes the overlays of each folder or video as one video, one at a time.

    A frame of a video is shown from its own time, so a varying frame rate is kept. If a video
    cannot be written, its frames are ignored and the other videos are still written.
    """

    def __init__(
        self,
        video_path: Callable[[str], Path],
        every: int,
        closed: Callable[[str, BaseException | None], None],
        report: Callable[[str], None],
    ) -> None:
        """Initialises without an open video.

        Args:
          video_path: returns the path of a video, given its name.
          every: each frame stands for this many frames of its source.
          closed: called with the name of each video, and None if it is complete or the error if it
            could not be written.
          report: called with messages about videos that are smaller than their frames.
        """
        self._video_path, self._every = video_path, every
        self._closed, self._report = closed, report
        self._name = ""
        self._film = contextlib.ExitStack()
        self._add: AddPicture | None = None
        self._size = (0, 0)
        self._fps, self._first_secs, self._last_secs = FOLDER_FPS, 0.0, 0.0

    def add(self, frame: Frame, picture: np.ndarray, secs: float | None) -> None:
        """Adds the overlay of a frame to the video that shows it; frames come in order.

        Args:
          frame: an image, or a frame of a video.
          picture: [H, W, 3] uint8 RGB.
          secs: time of the frame in its video; None for an image.

        Raises:
          OSError: the disk is full.
        """
        try:
            if frame.video != self._name:
                self._close()
                self._name = frame.video
                self._open(frame, picture.shape[:2], secs)
            if self._add is not None:
                self._add(_fit(picture, self._size), self._time(secs))
        except (OSError, ValueError) as error:
            self._fail(error)

    def _time(self, secs: float | None) -> float:
        """Returns when a frame is shown: at its own time, or after the last one if it has none."""
        now = -math.inf if secs is None else secs - self._first_secs
        if now <= self._last_secs:
            now = self._last_secs + 1 / self._fps
        self._last_secs = now
        return now

    def _open(self, frame: Frame, size: tuple[int, int], secs: float | None) -> None:
        path = self._video_path(self._name)
        fps = 0.0 if frame.number is None else open_video(frame.path).get(cv2.CAP_PROP_FPS)
        self._fps = fps / self._every if 0 < fps < math.inf else FOLDER_FPS
        self._first_secs, self._last_secs = secs or 0.0, -1 / self._fps
        encoder = load_encoder()
        if encoder is None:
            self._size = size
            film = mpeg4_film(path, size, self._fps)
        else:
            self._size = h264_size(size)
            if self._size != size:
                self._report(
                    f"{path}: its frames of {size[0]} x {size[1]} px are shrunk to "
                    f"{self._size[0]} x {self._size[1]}, the largest that browsers play"
                )
            images = Fraction(1, round(FOLDER_FPS))
            tick = images if frame.number is None else read_tick(frame.path)
            film = h264_film(encoder, path, self._size, self._fps, tick)
        self._add = self._film.enter_context(film)

    def _close(self) -> None:
        if self._add is None:
            return
        self._add = None
        try:
            self._film.close()
        except (OSError, ValueError) as error:
            self._fail(error)
        else:
            self._closed(self._name, None)

    def _fail(self, error: Exception) -> None:
        """Deletes the video and reports its error; raises it if the disk is full."""
        named = self._drop(error)
        if is_disk_full(named):
            raise named
        self._closed(self._name, named)

    def _drop(self, error: BaseException) -> BaseException:
        """Deletes the open video, if any; returns the error with the video's name and a remedy."""
        self._add = None
        try:
            self._film.__exit__(type(error), error, error.__traceback__)
        except (OSError, ValueError) as named:
            return named
        return error

    def __enter__(self) -> "Videos":
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            self._close()
        else:
            self._drop(error)


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes is a full disk, which stops all work."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a picture to fit (height, width), with black bars if the aspect ratios differ."""
    height, width = picture.shape[:2]
    if (height, width) == size:
        return picture
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    fitted = np.zeros((*size, 3), np.uint8)
    fitted[top : top + inner[0], left : left + inner[1]] = cv2.resize(
        picture, inner[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    return fitted
