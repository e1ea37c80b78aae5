"""Frames: their names, their order, and the videos that show them."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from mapseg.config import InferConfig
from mapseg.files import printable
from mapseg.inference.reading import VideoLength, measure_video
from mapseg.inference.searching import IMAGE_TYPES, is_image, is_video, search


@dataclass(frozen=True)
class Frame:
    """One picture to segment.

    Attributes:
      path: the image or video file.
      name: where its results go, without an ending: `sequences/01/image_0/000000`. It is printable:
        bytes that are not UTF-8 and control characters are escaped.
      video: which video shows it, without an ending: its folder, or the video that it is from.
      number: its place in a video file, from 0; None for an image.
    """

    path: Path
    name: str
    video: str
    number: int | None = None

    @property
    def shown(self) -> Path:
        """The folder or video file of which `video` is made."""
        return self.path.parent if self.number is None else self.path


@dataclass(frozen=True)
class FrameList:
    """Frames in natural order (2 before 10), and lines that tell what was left out or may lack."""

    frames: tuple[Frame, ...]
    skipped: tuple[str, ...]


def find_frames(config: InferConfig) -> FrameList:
    """Finds the frames that `config.frames` names.

    It is a folder, with all below it; a glob, where `**` goes through folders; a `.txt` list, one
    path a line, from the list's folder on; an image; or a video. Where a folder has folders named
    `image_*` below it, as all layouts of KITTI do, only their images are frames. Hidden files and
    results of inference never are. A file that is named twice is one frame. Videos are decoded
    once to count their frames, because their headers may only estimate it. One that cannot be
    decoded is a single frame, which will fail; one that is damaged within, or lacks its end, has a
    last frame that will fail.

    Args:
      config: `frames`, `cameras` and `every` are used.

    Returns:
      The frames and what was left out.

    Raises:
      FileNotFoundError: nothing found.
      ValueError: neither image nor video, `cameras` without `image_*` folders, or two frames whose
        results would have the same name.
    """
    found = search(config)
    home = printable(found.base.name) or "frames"
    inside = {path.parent for path in found.paths if path.parent != found.base}
    while found.base / home in inside:  # a folder of the same name as the one it lies in
        home += "_"
    frames: list[Frame] = []
    lines = list(found.skipped)
    videos: dict[str, Path] = {}
    ordered = sorted(dict.fromkeys(found.paths), key=order)
    for _, group in itertools.groupby(ordered, key=lambda path: path.parent):
        folder = list(group)
        for path in [path for path in folder if is_image(path)][:: config.every]:
            name = _output_name(path, found.base)
            parent = str(PurePosixPath(name).parent)
            video = _own_video(videos, home if parent == "." else parent, path.parent)
            frames.append(Frame(path, name, video))
        for path in (path for path in folder if is_video(path)):
            name = _output_name(path, found.base)
            video = _own_video(videos, name, path)
            parts, notes = _video_frames(path, name, video, config.every)
            frames += parts
            lines += notes
    if not frames:
        raise FileNotFoundError(
            f"{config.frames}: no frames found; {'; '.join(lines) or 'no files there'}. "
            f"Remedy: name a folder of images ({' '.join(IMAGE_TYPES)}), a quoted glob that "
            "matches files, a .txt list of paths, or a video"
        )
    _refuse_equal_names(frames)
    return FrameList(tuple(frames), tuple(lines))


def order(path: PurePath) -> Any:
    """A key that sorts files naturally, folder by folder: images, then videos."""

    def pieces(text: str) -> list[Any]:
        split = re.split(r"(\d+)", text)
        return [(int(piece), piece) if i % 2 else piece for i, piece in enumerate(split)]

    return [pieces(folder) for folder in path.parent.parts], is_video(path), pieces(path.name)


def _own_video(videos: dict[str, Path], name: str, shown: Path) -> str:
    """Returns a name that no other folder or video has: `a.mp4` and the images of `a` need two."""
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
                f"frames must have names of their own; the results of {other} and {frame.path} "
                f"would both be {frame.name}. Remedy: rename one, or choose by a glob or a list"
            )


def _video_frames(path: Path, name: str, video: str, every: int) -> tuple[list[Frame], list[str]]:
    """Returns the frames of a video, and lines that tell what it may lack.

    Reading the last one, of a video that is not whole, tells what is wrong with it.
    """
    try:
        length = measure_video(path)
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
        f"{path}: {length.frames} frames where {length.announced} are announced: its rate varies, "
        "it was cut without being encoded anew, or some are lost"
    )
    return frames, [line]
