"""Writes videos of overlays: one for each folder or video of frames."""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mapseg.files import naming
from mapseg.inference.frames import Frame
from mapseg.inference.reading import check_utf8, open_video

FOLDER_FPS = 10.0  # frame rate for a folder of images: that of KITTI's cameras
_MAX_PX, _MAX_RATE = 8191, 65535  # of MPEG-4: frame rates are fractions of 16-bit integers
_DISK_IS_FULL_BYTES = 2**20


class Videos:
    """Writes the overlays of each folder or video as one video, one at a time.

    If a video cannot be written, its frames are ignored and the other videos are still written.
    """

    def __init__(
        self,
        video_path: Callable[[str], Path],
        every: int,
        closed: Callable[[str, Exception | None], None],
    ) -> None:
        """Initialises without an open video.

        Args:
          video_path: returns the path of a video, given its name.
          every: each frame stands for this many frames of its source.
          closed: called with the name of each video, and None if it is complete or the error if it
            could not be written.
        """
        self._video_path, self._every, self._closed = video_path, every, closed
        self._name = ""
        self._writer: Any = None
        self._size = (0, 0)
        self._count = 0

    def add(self, frame: Frame, picture: np.ndarray) -> None:
        """Adds the overlay of a frame to the video that shows it; frames come in order.

        Raises:
          OSError: the disk is full.
        """
        if frame.video != self._name:
            self._close()
            self._name = frame.video
            try:
                self._open(frame, picture.shape[:2])
            except (OSError, ValueError) as error:
                self._fail(error)
        if self._writer is not None:
            fitted = _fit(picture, self._size)
            self._writer.write(cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))
            self._count += 1

    @property
    def _path(self) -> Path:
        return self._video_path(self._name)

    @property
    def _part(self) -> Path:
        # Hidden, so it is not another video's path; OpenCV takes the container from the extension.
        return self._path.with_name(f".{self._path.stem}.partial.mp4")

    def _open(self, frame: Frame, size: tuple[int, int]) -> None:
        self._size, self._count = size, 0
        fps = 0.0 if frame.number is None else open_video(frame.path).get(cv2.CAP_PROP_FPS)
        fps = _rate(fps / self._every if 0 < fps < math.inf else FOLDER_FPS)
        check_utf8(self._part)
        with naming(self._part):
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._part.touch()  # raises the cause, which OpenCV would not report
        code = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(self._part), code, fps, size[::-1])
        if not writer.isOpened():
            raise ValueError(
                f"{self._path}: an MPEG-4 video must have sides of 2 to {_MAX_PX:,} px and 0.001 "
                f"to {_MAX_RATE:,} frames/s; got {size[0]} x {size[1]} px and {fps:g} frames/s. "
                "Remedy: leave video out of --outputs, or use smaller frames"
            )
        self._writer = writer

    def _close(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        # The writer reports no errors: a full disk shows only when reading the file back.
        written = cv2.VideoCapture(str(self._part)).get(cv2.CAP_PROP_FRAME_COUNT)
        try:
            with naming(self._path):
                if written != self._count:
                    raise self._incomplete()
                self._part.replace(self._path)
        except (OSError, ValueError) as error:
            self._fail(error)
        else:
            self._closed(self._name, None)

    def _incomplete(self) -> Exception:
        if shutil.disk_usage(self._part.parent).free < _DISK_IS_FULL_BYTES:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        return ValueError(
            f"{self._path}: not all of {self._count} frames can be read back. Remedy: run the same "
            "command again, or leave video out of --outputs"
        )

    def _fail(self, error: Exception) -> None:
        """Deletes the video and reports its error; raises it if the disk is full."""
        self._drop()
        if is_disk_full(error):
            raise error
        self._closed(self._name, error)

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.release()
        self._writer = None
        with contextlib.suppress(OSError):  # a name that is too long
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> "Videos":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        elif self._writer is not None:
            self._drop()


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes is a full disk, which stops all work."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _rate(fps: float) -> float:
    """Returns the rate nearest to `fps` that OpenCV and MPEG-4 can store: 90.12 for 90.123."""
    for digits in (3, 2, 1, 0):
        if fps * 10**digits <= _MAX_RATE:
            return fps if digits == 3 else round(fps, digits)
    return fps


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
