"""Camera frames -> label maps, overlays, panels and videos, each at the frame's own size.

Decoding and encoding run in threads around the network, a few frames ahead and behind, so memory
is bounded and the order of the results is the order of the frames.
"""

import contextlib
import csv
import datetime
import fnmatch
import glob
import io
import itertools
import json
import math
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from mapseg import plots
from mapseg.config import OUTPUTS, InferConfig
from mapseg.labels import LabelSet

IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_TYPES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
FOLDER_FPS = 10.0  # of a video made of the images of a folder: KITTI's cameras
_NOT_FRAMES = re.compile("semantic|instance|confidence|depth")  # KITTI's, some inside image_*
_AHEAD = 4  # frames decoded before the network needs them, and as many still being written
_THREADS = min(4, os.cpu_count() or 1)
_REPORT_SECS = 5.0
_SUFFIXES = {"ids": "png", "overlay": "jpg", "panel": "jpg", "video": "mp4"}


class Segmentation(NamedTuple):
    """What the network says of one frame.

    Attributes:
      ids: [H, W] uint8 train ids, at the frame's own size.
      confidence: mean over the pixels of the highest softmax probability.
      scale: the factor by which the frame was resized for the network.
    """

    ids: np.ndarray
    confidence: float
    scale: float


Segment = Callable[[np.ndarray], Segmentation]


class Counts(NamedTuple):
    """How many frames were segmented now, could not be, and were there from a call before."""

    done: int
    failed: int
    skipped: int


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
    results in `config.out_dir` never are. Videos are decoded once to count their frames, because
    their headers may only estimate it.

    Args:
      config: `frames`, `cameras`, `every` and `out_dir` are used.

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
    source, out_dir = _absolute(Path(config.frames).expanduser()), _absolute(Path(config.out_dir))
    if config.cameras and not source.is_dir():
        raise ValueError(
            f"cameras must be used with a folder that has image_* folders; got {config.frames}"
        )
    if source.is_dir():
        return _search_folder(source, out_dir, config.cameras)
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
        return _search_glob(source, out_dir)
    raise FileNotFoundError(
        f"{config.frames}: no such file or folder. Remedy: give --frames a folder, a quoted glob, "
        "a .txt list of paths, an image or a video"
    )


def _search_folder(root: Path, out_dir: Path, cameras: str) -> _Found:
    files = [path for path in _walk(root) if not _is_result(path, out_dir)]
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


def _walk(root: Path) -> Iterator[Path]:
    """Yields the files below a folder, links to folders included, each folder once."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        below[:] = [] if real in seen else sorted(name for name in below if name[0] != ".")
        if real not in seen:
            yield from (Path(folder) / name for name in files if name[0] != ".")
        seen.add(real)


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


def _search_glob(pattern: Path, out_dir: Path) -> _Found:
    # pathlib's ** leaves files out before Python 3.13
    hits = [Path(hit) for hit in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207
    files = [path for path in hits if path.is_file() and not _is_result(path, out_dir)]
    usable = [path for path in files if _is_image(path) or _is_video(path)]
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    skipped = _other_types([path for path in files if path not in set(usable)])
    return _Found(usable, Path(*fixed), tuple(skipped))


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


def _is_result(path: Path, out_dir: Path) -> bool:
    if not path.is_relative_to(out_dir):
        return False
    return path.relative_to(out_dir).parts[0] in (*OUTPUTS, "legend.png")


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


def _open_video(path: Path) -> Any:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"{path}: must be a video that OpenCV can decode")
    return capture


def _count_video_frames(path: Path) -> int:
    capture = _open_video(path)
    return sum(1 for _ in iter(capture.grab, False))


def read_image(path: Path) -> np.ndarray:
    """Decodes an image file of any kind that OpenCV knows.

    Grey becomes three equal channels, 16 bits become 8, transparency is dropped, and a rotation
    noted in EXIF is carried out, so that results stand upright.

    Returns:
      [H, W, 3] uint8 RGB.

    Raises:
      ValueError: it cannot be read, is cut off, or is no image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if image is None:
        raise ValueError(f"{path}: cannot be decoded: cut off, or not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def infer_frames(
    segment: Segment,
    label_set: LabelSet,
    config: InferConfig,
    progress: Callable[[str], None],
    fingerprint: str,
) -> Counts:
    """Segments frames and writes what `config.outputs` asks for.

    `ids/<frame>.png` has the train id as the index of each pixel, `overlay/<frame>.jpg` the tinted
    frame, `panel/<frame>.jpg` frame and prediction with a legend, `video/<folder>.mp4` the
    overlays of a folder or video, fitted into the size of its first. `legend.png` and `frames.csv`
    (a row for each frame) are always written.

    The same call again goes on where the last one stopped: frames whose row and files are there
    are not done again, failed ones are. A frame that cannot be read, or that `segment` refuses with
    a ValueError, fails alone.

    Args:
      segment: [H, W, 3] uint8 RGB -> Segmentation. Called from this thread, in order.
      label_set: the classes that `segment` tells apart.
      config: which frames, and what to write where.
      progress: takes a line every few seconds, one for each failure, and one at the end.
      fingerprint: tells the run folder, checkpoint and options apart from others.

    Returns:
      How many frames were done, failed and skipped.

    Raises:
      FileNotFoundError: no frames.
      ValueError: an option that does not fit, or an `out_dir` with results of another fingerprint.
      OSError: the results cannot be written.
    """
    drawn = label_set.select(config.classes.split(",")) if config.classes else None
    results = _Results(Path(config.out_dir), tuple(config.outputs.split(",")), label_set, drawn)
    found = find_frames(config)
    for line in found.skipped:
        progress(line)
    _claim(results.out_dir, fingerprint)
    plots.write_png(results.out_dir / "legend.png", plots.legend(label_set))
    journal = _Journal(results.out_dir / "frames.csv", results.columns)
    tasks = _plan(found.frames, results, journal.rows)
    report = _Report(len(tasks), progress)
    with (
        journal,
        _Videos(results, config.every) as videos,
        contextlib.closing(_work(segment, tasks, results, journal, videos)) as finished,
    ):
        for task, status in finished:
            report.add(task, status)
    journal.finish([frame.name for frame in found.frames])
    counts = Counts(report.done, report.failed, len(found.frames) - report.done - report.failed)
    progress(
        f"{len(found.frames)} frames: {counts.done} done, {counts.failed} failed, "
        f"{counts.skipped} done before, in {report.spent}; see {results.out_dir}"
    )
    return counts


class _Task(NamedTuple):
    frame: Frame
    stored: bool  # all but its video is there from a call before, its ids too


class _Loaded(NamedTuple):
    image: np.ndarray
    ids: np.ndarray | None  # the stored ones


class _Segmented(NamedTuple):
    image: np.ndarray
    result: Segmentation
    ms: float


class _Outcome(NamedTuple):
    row: dict[str, str]
    picture: np.ndarray | None  # for the video


def _plan(
    frames: Sequence[Frame], results: "_Results", rows: Mapping[str, dict[str, str]]
) -> list[_Task]:
    """Lists the frames that need work: those not done, and all of a video that is not whole."""
    done = {f.name for f in frames if f.name in rows and results.exist(f.name)}
    videos: set[str] = set()
    if "video" in results.outputs:
        there = {name: results.path("video", name).is_file() for name in {f.video for f in frames}}
        videos = {f.video for f in frames if f.name not in done or not there[f.video]}
    if "ids" not in results.outputs:
        done -= {f.name for f in frames if f.video in videos}
    return [_Task(f, f.name in done) for f in frames if f.name not in done or f.video in videos]


def _work(
    segment: Segment,
    tasks: Sequence[_Task],
    results: "_Results",
    journal: "_Journal",
    videos: "_Videos",
) -> Generator[tuple[_Task, str], None, None]:
    """Does the tasks in order, reading ahead and writing behind; yields (task, status)."""
    source = _Source()

    def load(task: _Task) -> _Loaded:
        image = source.read(task.frame)
        return _Loaded(image, results.read_ids(task.frame.name) if task.stored else None)

    def finish(task: _Task, writing: "Future[_Outcome]") -> tuple[_Task, str]:
        outcome = writing.result()
        if outcome.picture is not None:
            videos.add(task.frame, outcome.picture)
        if not task.stored:
            journal.append(outcome.row)  # last: a row vouches for the files
        return task, outcome.row["status"]

    # Frames of a video come one after the other; images may be decoded side by side.
    readers = 1 if any(task.frame.number is not None for task in tasks) else _THREADS
    with (
        ThreadPoolExecutor(readers) as reading,
        ThreadPoolExecutor(_THREADS) as writing,
        ThreadPoolExecutor(1) as finishing,  # one thread, so in order
    ):
        unfinished: deque[Future[tuple[_Task, str]]] = deque()
        for task, loading in _ahead(reading, load, tasks):
            written = writing.submit(results.write, task, _segment_one(segment, loading))
            unfinished.append(finishing.submit(finish, task, written))
            if len(unfinished) > _AHEAD:
                yield unfinished.popleft().result()
        while unfinished:
            yield unfinished.popleft().result()


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[_Task], _Loaded], tasks: Iterable[_Task]
) -> Iterator[tuple[_Task, "Future[_Loaded]"]]:
    """Yields the tasks in order while the next ones are being loaded."""
    waiting: deque[tuple[_Task, Future[_Loaded]]] = deque()
    for task in tasks:
        waiting.append((task, pool.submit(load, task)))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _segment_one(segment: Segment, loading: "Future[_Loaded]") -> _Segmented | ValueError:
    try:
        image, ids = loading.result()
        started = time.perf_counter()
        result = segment(image) if ids is None else Segmentation(ids, math.nan, math.nan)
        return _Segmented(image, result, 1000 * (time.perf_counter() - started))
    except ValueError as error:
        return error


class _Source:
    """Reads frames. A video is decoded once from its start: seeking is not exact."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._capture: Any = None
        self._next = 0

    def read(self, frame: Frame) -> np.ndarray:
        if frame.number is None:
            return read_image(frame.path)
        if frame.path != self._path:
            self._path, self._capture, self._next = frame.path, _open_video(frame.path), 0
        while self._next < frame.number:
            self._capture.grab()
            self._next += 1
        whole, image = self._capture.read()
        self._next += 1
        if not whole:
            raise ValueError(f"{frame.path}: frame {frame.number} cannot be decoded")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class _Results:
    """The files that a frame gives."""

    out_dir: Path
    outputs: tuple[str, ...]
    label_set: LabelSet
    drawn: np.ndarray | None

    @property
    def columns(self) -> list[str]:
        fixed = ["frame", "status", "height", "width", "scale", "ms", "mean_confidence"]
        return fixed + [f"share:{name}" for name in self.label_set.names]

    def path(self, output: str, name: str) -> Path:
        return self.out_dir / output / f"{name}.{_SUFFIXES[output]}"

    def exist(self, name: str) -> bool:
        """Tells whether every file of a frame is there; a video is not one frame's."""
        return all(self.path(o, name).is_file() for o in self.outputs if o != "video")

    def read_ids(self, name: str) -> np.ndarray:
        with Image.open(self.path("ids", name)) as stored:
            return np.asarray(stored)

    def write(self, task: _Task, done: _Segmented | ValueError) -> _Outcome:
        """Writes the files of a frame; gives its row, and its picture for the video."""
        name = task.frame.name
        if isinstance(done, ValueError):
            empty = dict.fromkeys(self.columns, "")
            return _Outcome({**empty, "frame": name, "status": f"error: {done}"}, None)
        image, (ids, confidence, scale), ms = done
        tinted = None
        if {"overlay", "video"} & {*self.outputs}:
            tinted = plots.overlay(image, ids, self.label_set.palette, self.drawn)
        if "ids" in self.outputs and not task.stored:
            plots.write_png(self.path("ids", name), ids, self.label_set.palette)
        if "overlay" in self.outputs and tinted is not None and not task.stored:
            plots.write_jpg(self.path("overlay", name), tinted)
        if "panel" in self.outputs and not task.stored:
            panel = plots.panel(image, ids, self.label_set, drawn=self.drawn)
            plots.write_jpg(self.path("panel", name), panel)
        shares = plots.count_ids(ids)[: len(self.label_set.classes)] / ids.size
        fixed = [name, "ok", *map(str, ids.shape), f"{scale:.6g}", f"{ms:.1f}", f"{confidence:.4f}"]
        values = fixed + [f"{share:.6f}" for share in shares]
        row = dict(zip(self.columns, values, strict=True))
        return _Outcome(row, tinted if "video" in self.outputs else None)


def _claim(out_dir: Path, fingerprint: str) -> None:
    """Binds a folder to one fingerprint, so that results of two runs never mix."""
    path = out_dir / "inference.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        if stored != fingerprint:
            raise ValueError(
                f"{out_dir}: must hold results of the same run, checkpoint and options; it has "
                f"those of {stored}, asked is {fingerprint}. Remedy: another --out_dir"
            )
    elif any((out_dir / name).exists() for name in (*OUTPUTS, "frames.csv")):
        raise ValueError(
            f"{out_dir}: must be empty or hold results of mapseg; it has others, without an "
            "inference.json. Remedy: another --out_dir"
        )
    else:
        text = json.dumps({"fingerprint": fingerprint}, indent=2) + "\n"
        plots.write_file(path, text.encode())


class _Journal:
    """`frames.csv`: its rows are noted as frames are done, and put in order at the end."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path, self._columns = path, columns
        self._notes_path = path.with_name("frames.journal.csv")
        self.rows = {**self._read(path), **self._read(self._notes_path)}

    def _read(self, path: Path) -> dict[str, dict[str, str]]:
        """Reads the rows of frames that were done; failed ones are to be tried again."""
        if not path.is_file():
            return {}
        # A process that was killed leaves the last line without its end.
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        reader = csv.DictReader(whole.splitlines())
        if reader.fieldnames != self._columns:
            return {}
        return {row["frame"]: row for row in reader if row["status"] == "ok"}

    def _text(self, rows: Iterable[dict[str, str]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def __enter__(self) -> "_Journal":
        plots.write_file(self._notes_path, self._text(self.rows.values(), header=True).encode())
        self._file = self._notes_path.open("a", encoding="utf-8", newline="")
        return self

    def append(self, row: dict[str, str]) -> None:
        self.rows[row["frame"]] = row
        self._file.write(self._text([row], header=False))
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def finish(self, names: Sequence[str]) -> None:
        rows = [self.rows[name] for name in names]
        plots.write_file(self._path, self._text(rows, header=True).encode())
        self._notes_path.unlink()


class _Videos:
    """Writes the overlays of each folder or video as one video, one at a time."""

    def __init__(self, results: _Results, every: int) -> None:
        self._results, self._every = results, every
        self._name = ""
        self._writer: Any = None
        self._size = (0, 0)
        self._count = 0

    def add(self, frame: Frame, picture: np.ndarray) -> None:
        if self._writer is None or frame.video != self._name:
            self._close()
            self._open(frame, picture.shape[:2])
        fitted = _fit(picture, self._size)
        self._writer.write(cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))
        self._count += 1

    @property
    def _path(self) -> Path:
        return self._results.path("video", self._name)

    @property
    def _part(self) -> Path:
        return self._path.with_suffix(".part.mp4")  # the ending tells OpenCV the container

    def _open(self, frame: Frame, size: tuple[int, int]) -> None:
        self._name, self._size, self._count = frame.video, size, 0
        fps = FOLDER_FPS
        if frame.number is not None:
            fps = _open_video(frame.path).get(cv2.CAP_PROP_FPS) / self._every or FOLDER_FPS
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
                f"{self._path}: cannot be written: {written:.0f} of {self._count} frames arrived. "
                "Remedy: free some space, or leave video out of --outputs"
            )
        self._part.replace(self._path)

    def __enter__(self) -> "_Videos":
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


class _Report:
    """Counts what was done, and says so now and then."""

    def __init__(self, total: int, progress: Callable[[str], None]) -> None:
        self.done = self.failed = 0
        self._total, self._progress, self._count = total, progress, 0
        self._started = self._said = time.monotonic()

    @property
    def spent(self) -> datetime.timedelta:
        return datetime.timedelta(seconds=round(time.monotonic() - self._started))

    def add(self, task: _Task, status: str) -> None:
        self._count += 1
        if status != "ok":
            self.failed += 1
            self._progress(f"{task.frame.name}: {status}")
        elif not task.stored:
            self.done += 1
        now = time.monotonic()
        if now - self._said >= _REPORT_SECS:
            self._said = now
            rate = self._count / (now - self._started)
            left = datetime.timedelta(seconds=round((self._total - self._count) / rate))
            self._progress(
                f"frame {self._count} of {self._total}, {rate:.1f} frames/s, {left} left"
            )
