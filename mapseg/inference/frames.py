"""Finds the frames to segment: their names, order and output videos."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from mapseg.config import InferConfig
from mapseg.files import printable
from mapseg.inference.measuring import VideoLength, video_length
from mapseg.inference.searching import IMAGE_TYPES, is_image, is_video, search


@dataclass(frozen=True)
class Frame:
    """One image or video frame to segment.

    Attributes:
      path: the image or video file.
      name: the path of its results without extension: `sequences/01/image_0/000000`. Bytes that
        are not UTF-8 and control characters are escaped, so it is printable.
      video: the output video that shows it, without extension: the name of its folder or source
        video.
      number: its index in the video file, from 0; None for an image.
    """

    path: Path
    name: str
    video: str
    number: int | None = None

    @property
    def shown(self) -> Path:
        """The folder or video file that `video` is made from."""
        return self.path.parent if self.number is None else self.path


@dataclass(frozen=True)
class FrameList:
    """Frames in natural order (2 before 10), and messages about skipped or missing ones."""

    frames: tuple[Frame, ...]
    skipped: tuple[str, ...]


def find_frames(config: InferConfig) -> FrameList:
    """Finds the frames that `config.frames` names.

    It is a folder, searched recursively; a glob, where `**` matches nested folders; a `.txt` list,
    one path per line, relative to the list's folder; an image; or a video. If a folder contains
    folders named `image_*`, as in all layouts of KITTI, only their images are frames. Hidden files
    and results of inference are ignored. A file listed twice is one frame.

    A video is decoded once to count its frames if its index leaves doubt: many headers hold only
    an estimate. A video that cannot be decoded is a single frame, which will fail; one that is
    truncated or damaged inside has an extra last frame, which will fail. If a video was not decoded
    and is damaged inside, its first undecodable frame will fail, and the frames after it are lost.

    Args:
      config: `frames`, `cameras` and `every` are used.

    Returns:
      The frames, and messages about skipped files.

    Raises:
      FileNotFoundError: no frames were found.
      ValueError: a file is neither an image nor a video, `cameras` is used without `image_*`
        folders, or two frames would have results of the same name.
    """
    files = search(config)
    home = printable(files.base.name) or "frames"
    subfolders = {path.parent for path in files.paths if path.parent != files.base}
    while files.base / home in subfolders:  # a subfolder with the same name as its parent
        home += "_"
    frames: list[Frame] = []
    messages = list(files.skipped)
    videos: dict[str, Path] = {}
    ordered = sorted(dict.fromkeys(files.paths), key=order)
    for _, group in itertools.groupby(ordered, key=lambda path: path.parent):
        folder = list(group)
        for path in [path for path in folder if is_image(path)][:: config.every]:
            name = _output_name(path, files.base)
            parent = str(PurePosixPath(name).parent)
            video = _unique_video(videos, home if parent == "." else parent, path.parent)
            frames.append(Frame(path, name, video))
        for path in (path for path in folder if is_video(path)):
            name = _output_name(path, files.base)
            video = _unique_video(videos, name, path)
            video_frames, warnings = _video_frames(path, name, video, config.every)
            frames += video_frames
            messages += warnings
    if not frames:
        raise FileNotFoundError(
            f"{config.frames}: no frames found; {'; '.join(messages) or 'no files there'}. "
            f"Remedy: name a folder of images ({' '.join(IMAGE_TYPES)}), a quoted glob that "
            "matches files, a .txt list of paths, or a video"
        )
    _refuse_equal_names(frames)
    return FrameList(tuple(frames), tuple(messages))


def order(path: PurePath) -> Any:
    """Returns a sort key for natural order, folder by folder: images first, then videos."""

    def pieces(text: str) -> list[Any]:
        split = re.split(r"(\d+)", text)
        return [(int(piece), piece) if i % 2 else piece for i, piece in enumerate(split)]

    return [pieces(folder) for folder in path.parent.parts], is_video(path), pieces(path.name)


def _unique_video(videos: dict[str, Path], name: str, shown: Path) -> str:
    """Returns a unique name: `a.mp4` and a folder `a` of images must not share one."""
    while videos.setdefault(name, shown) != shown:
        name += "_"
    return name


def _output_name(path: Path, base: Path) -> str:
    inside = path.relative_to(base if path.is_relative_to(base) else path.anchor)
    return printable(inside.with_suffix("").as_posix())


def _refuse_equal_names(frames: Iterable[Frame]) -> None:
    first: dict[str, Path] = {}
    for frame in frames:
        other = first.setdefault(frame.name, frame.path)
        if other is not frame.path:
            raise ValueError(
                f"frames must have unique names; the results of {other} and {frame.path} "
                f"would both be {frame.name}. Remedy: rename one, or select one by a glob or list"
            )


def _video_frames(path: Path, name: str, video: str, every: int) -> tuple[list[Frame], list[str]]:
    """Returns the frames of a video, and warnings about frames that may be missing.

    An incomplete video gets one more frame: reading it fails and reports the cause.
    """
    try:
        length = video_length(path)
    except ValueError:
        length = VideoLength(0, 0, False)
    if not length.frames:
        return [Frame(path, name, video, 0)], []
    numbers = [*range(0, length.frames, every)]
    if not length.is_whole:
        numbers.append(length.frames)
    frames = [Frame(path, f"{name}/{n:06d}", video, n) for n in numbers]
    if not length.is_whole or length.frames >= length.announced:
        return frames, []
    line = (
        f"{path}: its header announces {length.announced} frames, {length.frames} can be decoded: "
        "its frame rate varies, it was cut without re-encoding, or frames are lost"
    )
    return frames, [line]
