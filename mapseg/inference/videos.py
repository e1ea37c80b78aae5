"""Videos of overlays: one for each folder or video that frames come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mapseg.files import naming
from mapseg.inference.frames import Frame
from mapseg.inference.reading import open_video

FOLDER_FPS = 10.0  # of a video made of the images of a folder: KITTI's cameras


class Videos:
    """Writes the overlays of each folder or video as one video, one at a time."""

    def __init__(self, video_path: Callable[[str], Path], every: int) -> None:
        """Begins with no video.

        Args:
          video_path: where the video of a name goes.
          every: of how many frames of a source each one is.
        """
        self._video_path, self._every = video_path, every
        self._name = ""
        self._writer: Any = None
        self._size = (0, 0)
        self._count = 0

    def add(self, frame: Frame, picture: np.ndarray) -> None:
        """Adds the overlay of a frame to the video that shows it; frames come in order."""
        if self._writer is None or frame.video != self._name:
            self._close()
            self._open(frame, picture.shape[:2])
        fitted = _fit(picture, self._size)
        self._writer.write(cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))
        self._count += 1

    @property
    def _path(self) -> Path:
        return self._video_path(self._name)

    @property
    def _part(self) -> Path:
        return self._path.with_suffix(".part.mp4")  # the ending tells OpenCV the container

    def _open(self, frame: Frame, size: tuple[int, int]) -> None:
        self._name, self._size, self._count = frame.video, size, 0
        fps = 0.0 if frame.number is None else open_video(frame.path).get(cv2.CAP_PROP_FPS)
        fps = fps / self._every if fps > 0 else FOLDER_FPS
        with naming(self._part):
            self._part.parent.mkdir(parents=True, exist_ok=True)
        code = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._part), code, fps, size[::-1])

    def _close(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        # The writer reports nothing: a full disk shows only in what can be read back.
        written = cv2.VideoCapture(str(self._part)).get(cv2.CAP_PROP_FRAME_COUNT)
        if written != self._count:
            self._part.unlink(missing_ok=True)
            raise OSError(
                f"{self._path}: cannot be written: not all of {self._count} frames arrived. "
                "Remedy: free some space, or leave video out of --outputs"
            )
        self._part.replace(self._path)

    def __enter__(self) -> "Videos":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        elif self._writer is not None:
            self._writer.release()
            self._part.unlink(missing_ok=True)


def _fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrinks or enlarges a picture into (height, width), black where its shape leaves room."""
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
