"""Finds frames: in folders, globs, lists and videos; in the layouts of KITTI."""

import fnmatch
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mapseg.config import OUTPUTS, InferConfig
from mapseg.files import walk
from mapseg.inference.reading import open_video

RESULTS_MARK = "inference.json"  # says whose results a folder holds
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_TYPES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_NOT_FRAMES = re.compile("semantic|instance|confidence|depth")  # KITTI's, some inside image_*


@dataclass(frozen=True)
class Frame:
    """One picture to segment.

    Attributes:
      path: the image or video file.
      name: where its results go, without an ending: `sequences/01/image_0/000000`.
      video: which video shows it, without an ending: its folder, or the video that it is from.
      number: its place in a video file, from 0; None for an image.
    """

    path: Path
    name: str
    video: str
    number: int | None = None


@dataclass(frozen=True)
class FrameList:
    """Frames in natural order (2 before 10), and lines that tell what was left out."""

    frames: tuple[Frame, ...]
    skipped: tuple[str, ...]


def find_frames(config: InferConfig) -> FrameList:
    """Finds the frames that `config.frames` names.

    It is a folder, with all below it; a glob, where `**` goes through folders; a `.txt` list, one
    path a line, from the list's folder on; an image; or a video. Where a folder has folders named
    `image_*` below it, as all layouts of KITTI do, only their images are frames. Hidden files and
    results of inference never are. Videos are decoded once to count their frames, because
    their headers may only estimate it.

    Args:
      config: `frames`, `cameras` and `every` are used.

    Returns:
      The frames and what was left out.

    Raises:
      FileNotFoundError: nothing found.
      ValueError: neither image nor video, `cameras` without `image_*` folders, or two frames whose
        results would have the same name.
    """
    found = _search(config)
    home = found.base.name or "frames"
    inside = {path.parent for path in found.paths if path.parent != found.base}
    while found.base / home in inside:  # a folder of the same name as the one it lies in
        home += "_"
    frames: list[Frame] = []
    ordered = sorted(found.paths, key=_natural)
    for _, group in itertools.groupby(ordered, key=lambda path: path.parent):
        folder = list(group)
        images = [path for path in folder if _is_image(path)][:: config.every]
        for path in images:
            name = _output_name(path, found.base)
            parent = str(PurePosixPath(name).parent)
            frames.append(Frame(path, name, home if parent == "." else parent))
        for path in (path for path in folder if _is_video(path)):
            name = _output_name(path, found.base)
            numbers = range(0, _count_video_frames(path), config.every)
            frames.extend(Frame(path, f"{name}/{n:06d}", name, n) for n in numbers)
    if not frames:
        raise FileNotFoundError(
            f"{config.frames}: no frames found; {'; '.join(found.skipped) or 'no files there'}. "
            f"Remedy: name a folder of images ({' '.join(IMAGE_TYPES)}), a quoted glob that "
            "matches files, a .txt list of paths, or a video"
        )
    _refuse_equal_names(frames)
    return FrameList(tuple(frames), found.skipped)


class _Found(NamedTuple):
    paths: list[Path]
    base: Path  # names of results are relative to it
    skipped: tuple[str, ...]


def _search(config: InferConfig) -> _Found:
    source = _absolute(Path(config.frames).expanduser())
    if config.cameras and not source.is_dir():
        raise ValueError(
            f"cameras must be used with a folder that has image_* folders; got {config.frames}"
        )
    if source.is_dir():
        return _search_folder(source, config.cameras)
    if source.is_file() and source.suffix.lower() == ".txt":
        return _Found(_read_list(source), source.parent, ())
    if source.is_file():
        if not (_is_image(source) or _is_video(source)):
            raise ValueError(
                f"frames must be a folder, a glob, a .txt list, an image or a video "
                f"({' '.join(IMAGE_TYPES + VIDEO_TYPES)}); got {config.frames}"
            )
        return _Found([source], source.parent, ())
    if glob.has_magic(str(source)):
        return _search_glob(source)
    raise FileNotFoundError(
        f"{config.frames}: no such file or folder. Remedy: give --frames a folder, a quoted glob, "
        "a .txt list of paths, an image or a video"
    )


def _search_folder(root: Path, cameras: str) -> _Found:
    files = _without_results(list(walk(root)), root)
    images = [path for path in files if _is_image(path)]
    lines = _other_types([path for path in files if not _is_image(path)])
    if any(_camera(path, root) for path in images):
        images, left_out = _camera_frames(images, root, cameras.split(",") if cameras else [])
        lines = left_out + lines
    elif cameras:
        raise ValueError(
            f"cameras must be used with a folder that has image_* folders; {root} has none. "
            "Remedy: leave --cameras out"
        )
    return _Found(images, root, tuple(lines))


def _camera(path: Path, root: Path) -> str:
    folders = path.relative_to(root).parts[:-1]
    return next((name for name in folders if fnmatch.fnmatchcase(name, "image_*")), "")


def _camera_frames(
    images: Sequence[Path], root: Path, wanted: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Keeps the images of cameras; tells what else there is, with counts."""
    kept, left_out = [], Counter[str]()
    for path in images:
        folders = path.relative_to(root).parts[:-1]
        camera = _camera(path, root)
        map_folder = next((name for name in folders if _NOT_FRAMES.search(name)), "")
        if map_folder:
            left_out[f"{map_folder}: labels or depth, not frames"] += 1
        elif not camera:
            left_out[f"{folders[-1] if folders else root.name}: not an image_* folder"] += 1
        elif wanted and camera not in wanted:
            left_out[f"{camera}: not among --cameras={','.join(wanted)}"] += 1
        else:
            kept.append(path)
    return kept, [f"skipped {n} images in {what}" for what, n in sorted(left_out.items())]


def _search_glob(pattern: Path) -> _Found:
    # pathlib's ** leaves files out before Python 3.13
    hits = [Path(hit) for hit in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    files = _without_results([path for path in hits if path.is_file()], base)
    usable = [path for path in files if _is_image(path) or _is_video(path)]
    skipped = _other_types([path for path in files if not (_is_image(path) or _is_video(path))])
    return _Found(usable, base, tuple(skipped))


def _read_list(path: Path) -> list[Path]:
    paths = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        frame = _absolute(path.parent / entry)
        if not frame.is_file():
            raise FileNotFoundError(f"{path}, line {number}: no such file: {frame}")
        if not (_is_image(frame) or _is_video(frame)):
            raise ValueError(
                f"{path}, line {number}: must name an image or a video "
                f"({' '.join(IMAGE_TYPES + VIDEO_TYPES)}); got {entry}"
            )
        paths.append(frame)
    return paths


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))  # links stay as they are named


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_TYPES


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_TYPES


def _without_results(paths: Sequence[Path], base: Path) -> list[Path]:
    """Leaves out what inference wrote somewhere below a folder, where it left its mark."""
    parents = {path.parent for path in paths}
    folders = {folder for parent in parents for folder in (parent, *parent.parents)}
    marked = [f for f in folders if f.is_relative_to(base) and (f / RESULTS_MARK).is_file()]
    own = {*OUTPUTS, "legend.png"}
    return [
        path
        for path in paths
        if not any(path.is_relative_to(f) and path.relative_to(f).parts[0] in own for f in marked)
    ]


def _other_types(files: Sequence[Path]) -> list[str]:
    counts = Counter(path.suffix.lower() or path.name for path in files)
    what = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    return [f"skipped files that are not images: {what}"] if what else []


def _natural(path: Path) -> Any:
    def pieces(text: str) -> list[Any]:
        split = re.split(r"(\d+)", text)
        return [(int(piece), piece) if i % 2 else piece for i, piece in enumerate(split)]

    return [pieces(folder) for folder in path.parent.parts], pieces(path.name)


def _output_name(path: Path, base: Path) -> str:
    inside = path.relative_to(base if path.is_relative_to(base) else path.anchor)
    return inside.with_suffix("").as_posix()


def _refuse_equal_names(frames: Iterable[Frame]) -> None:
    first: dict[str, Path] = {}
    for frame in frames:
        other = first.setdefault(frame.name, frame.path)
        if other is not frame.path:
            raise ValueError(
                f"frames must have names of their own; the results of {other} and {frame.path} "
                f"would both be {frame.name}. Remedy: rename one, or choose by a glob or a list"
            )


def _count_video_frames(path: Path) -> int:
    capture = open_video(path)
    return sum(1 for _ in iter(capture.grab, False))
