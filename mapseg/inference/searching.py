"""Finds the files of frames in folders, globs, lists and the layouts of KITTI."""

import codecs
import fnmatch
import functools
import glob
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from mapseg.config import OUTPUTS, InferConfig
from mapseg.files import expand_home, walk

RESULTS_MARK = "inference.json"  # marks a folder of inference results
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_TYPES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
# KITTI's folders of labels and depth; some are inside image_* folders or contain them.
_NOT_FRAMES = {
    *("semantic", "semantic_rgb", "instance", "confidence"),
    *("data_2d_semantics", "proj_depth", "data_depth_annotated", "data_depth_velodyne"),
}


class Found(NamedTuple):
    """The files of frames, unsorted.

    Attributes:
      paths: images and videos.
      base: names of results are relative to it.
      skipped: messages about skipped files.
    """

    paths: list[Path]
    base: Path
    skipped: tuple[str, ...]


def search(config: InferConfig) -> Found:
    """Finds the files that `config.frames` names; see `find_frames`."""
    source = _absolute(expand_home(config.frames))
    if config.cameras and not source.is_dir():
        raise ValueError(
            f"cameras must be used with a folder that has image_* folders; got {config.frames}"
        )
    if source.is_dir():
        return _search_folder(source, config.cameras)
    if source.is_file() and source.suffix.lower() == ".txt":
        return Found(_read_list(source), source.parent, ())
    if source.is_file():
        if not (is_image(source) or is_video(source)):
            raise ValueError(
                f"frames must be a folder, a glob, a .txt list, an image or a video "
                f"({' '.join(IMAGE_TYPES + VIDEO_TYPES)}); got {config.frames}"
            )
        return Found([source], source.parent, ())
    if glob.has_magic(str(source)):
        return _search_glob(source)
    raise FileNotFoundError(
        f"{config.frames}: no such file or folder. Remedy: give --frames a folder, a quoted glob, "
        "a .txt list of paths, an image or a video"
    )


def is_image(path: PurePath) -> bool:
    """Returns whether a file name is that of an image."""
    return path.suffix.lower() in IMAGE_TYPES


def is_video(path: PurePath) -> bool:
    """Returns whether a file name is that of a video."""
    return path.suffix.lower() in VIDEO_TYPES


def _search_folder(root: Path, cameras: str) -> Found:
    files = _without_results(list(walk(root)), root)
    images = [path for path in files if is_image(path)]
    skipped = _skipped_types([path for path in files if not is_image(path)])
    if any(_camera(path, root) for path in images):
        wanted = cameras.split(",") if cameras else []
        images, skipped_images = _camera_frames(images, root, wanted)
        skipped = skipped_images + skipped
    elif cameras:
        raise ValueError(
            f"cameras must be used with a folder that has image_* folders; {root} has none. "
            "Remedy: leave out --cameras"
        )
    return Found(images, root, tuple(skipped))


def _camera(path: Path, root: Path) -> str:
    folders = path.relative_to(root).parts[:-1]
    return next((name for name in folders if fnmatch.fnmatchcase(name, "image_*")), "")


def _camera_frames(
    images: Sequence[Path], root: Path, wanted: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Returns the images of the cameras, and messages that count the other images."""
    kept, skipped = [], Counter[str]()
    for path in images:
        folders = path.relative_to(root).parts[:-1]
        camera = _camera(path, root)
        map_folder = next((name for name in folders if name in _NOT_FRAMES), "")
        if map_folder:
            skipped[f"{map_folder}: labels or depth, not frames"] += 1
        elif not camera:
            skipped[f"{folders[-1] if folders else root.name}: not an image_* folder"] += 1
        elif wanted and camera not in wanted:
            skipped[f"{camera}: not among --cameras={','.join(wanted)}"] += 1
        else:
            kept.append(path)
    return kept, [f"skipped {n} images in {reason}" for reason, n in sorted(skipped.items())]


def _search_glob(pattern: Path) -> Found:
    # pathlib's ** does not match files before Python 3.13
    hits = [Path(hit) for hit in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    files = [path for path in hits if path.is_file() and not _in_loop(path.parent)]
    files = _without_results(files, base)
    usable = [path for path in files if is_image(path) or is_video(path)]
    skipped = _skipped_types([path for path in files if not (is_image(path) or is_video(path))])
    return Found(usable, base, tuple(skipped))


def _read_list(path: Path) -> list[Path]:
    paths = []
    for number, line in enumerate(_read_utf8(path).split("\n"), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        frame = _absolute(path.parent / entry)
        if not frame.is_file():
            reason = "a folder or device, not a file" if frame.exists() else "no such file"
            raise FileNotFoundError(f"{path}, line {number}: {reason}: {frame}")
        if not (is_image(frame) or is_video(frame)):
            raise ValueError(
                f"{path}, line {number}: must name an image or a video "
                f"({' '.join(IMAGE_TYPES + VIDEO_TYPES)}); got {entry}"
            )
        paths.append(frame)
    return paths


def _read_utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")  # Windows editors may write a byte order mark
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        kind = "UTF-16" if is_utf16 else f"line {number}: {error.object[error.start : error.end]!r}"
        raise _not_utf8(path, kind) from error
    if "\0" in text:
        raise _not_utf8(path, "zero bytes, as in UTF-16")
    return text


def _not_utf8(path: Path, content: str) -> ValueError:
    return ValueError(
        f"{path}: a list of frames must be UTF-8 text; got {content}. Remedy: save it as UTF-8 "
        "(iconv -t utf-8)"
    )


@functools.cache
def _in_loop(folder: Path) -> bool:
    """Returns whether a folder is reached by a symbolic link to one of its own parents."""
    folders = [each.resolve() for each in (folder, *folder.parents)]
    return len({*folders}) < len(folders)


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))  # symbolic links are not resolved


def _without_results(paths: Sequence[Path], base: Path) -> list[Path]:
    """Removes the results of inference, which are in folders with a mark."""
    parents = {path.parent for path in paths}
    folders = {folder for parent in parents for folder in (parent, *parent.parents)}
    marked = [f for f in folders if f.is_relative_to(base) and (f / RESULTS_MARK).is_file()]
    results = {*OUTPUTS, "legend.png"}

    def is_result(path: Path, folder: Path) -> bool:
        return path.is_relative_to(folder) and path.relative_to(folder).parts[0] in results

    return [path for path in paths if not any(is_result(path, folder) for folder in marked)]


def _skipped_types(files: Sequence[Path]) -> list[str]:
    counts = Counter(path.suffix.lower() or path.name for path in files)
    text = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    return [f"skipped files that are not images: {text}"] if text else []
