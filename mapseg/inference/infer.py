"""Camera frames -> label maps, overlays, panels and videos, each at the frame's own size.

Decoding and encoding run in threads around the network, a few frames ahead and behind, so memory
is bounded and the order of the results is the order of the frames.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from mapseg import pictures as plots
from mapseg.config import OUTPUTS, InferConfig, PredictConfig
from mapseg.files import naming, write_text
from mapseg.inference.frames import (
    RESULTS_MARK,
    Frame,
    FrameList,
    FrameReader,
    find_frames,
    open_video,
)
from mapseg.inference.predictor import Predictor, load_predictor, load_weights, segment_array
from mapseg.labels import LabelSet
from mapseg.progress import duration
from mapseg.runs.checkpoints import Run, find_checkpoint, open_run
from mapseg.training.initial_weights import CITYSCAPES_LONG_SIDE_PX, load_deeplab

FOLDER_FPS = 10.0  # of a video made of the images of a folder: KITTI's cameras
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


def predict(run: Run, frame: np.ndarray) -> Segmentation:
    """Segments one frame [H, W, 3] uint8 RGB with a run's best checkpoint.

    It loads the network each time: for many frames, use `infer_run`, or an Estimator.
    """
    return segment_frame(load_predictor(run, PredictConfig()), frame)


def segment_frame(predictor: Predictor, frame: np.ndarray) -> Segmentation:
    """Segments one frame [H, W, 3] uint8 RGB."""
    return Segmentation(*segment_array(predictor, frame))


def infer_run(
    run_dir: Path,
    config: InferConfig,
    predicting: PredictConfig,
    checkpoint: str,
    progress: Callable[[str], None],
) -> Counts:
    """Segments frames with a trained run; see `infer_frames`.

    Args:
      run_dir: a run folder.
      config: which frames, and what to write where.
      predicting: scales, flip and tile size.
      checkpoint: `best`, `latest` or a step.
      progress: takes lines for people.

    Raises:
      FileNotFoundError: no such run or checkpoint, or no frames.
      ValueError: see `infer_frames`.
    """
    run = open_run(run_dir)
    path = find_checkpoint(run_dir, checkpoint)
    found = find_frames(config)  # what is missing is told before the network is loaded
    by = f"{run_dir.resolve()}, {path.name} ({_digest(path / 'weights.npz')})"
    predictor = load_weights(run, predicting, path)
    progress(f"{run.model.encoder}, {path.name} of {run_dir}, {len(run.label_set.classes)} classes")
    return _infer(predictor, run.label_set, found, config, progress, by)


def infer_deeplab(
    prefix: str, config: InferConfig, predicting: PredictConfig, progress: Callable[[str], None]
) -> Counts:
    """Segments frames with a network of TF DeepLab, trained on Cityscapes, as it is.

    Args:
      prefix: of its checkpoint; see `load_deeplab`.
      config: which frames, and what to write where.
      predicting: as of `infer_run`; `scale=auto` is a long side of 2048, as in Cityscapes.
      progress: takes lines for people.

    Raises:
      FileNotFoundError: no such checkpoint, or no frames.
      ValueError: see `load_deeplab` and `infer_frames`.
    """
    found = find_frames(config)
    model, label_set = load_deeplab(prefix)
    # The index holds a checksum of every weight.
    by = f"{Path(prefix).resolve()} ({_digest(Path(f'{prefix}.index'))})"
    predictor = Predictor(model, predicting, CITYSCAPES_LONG_SIDE_PX)
    progress(f"xception65, {prefix}, {len(label_set.classes)} classes of Cityscapes")
    return _infer(predictor, label_set, found, config, progress, by)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _infer(
    predictor: Predictor,
    label_set: LabelSet,
    found: FrameList,
    config: InferConfig,
    progress: Callable[[str], None],
    by: str,
) -> Counts:
    fingerprint = (
        f"frames {Path(config.frames).resolve()} by {by}, {predictor.config}, "
        f"classes={config.classes or 'all'}"
    )

    def segment(frame: np.ndarray) -> Segmentation:
        return segment_frame(predictor, frame)

    return infer_frames(segment, label_set, found, config, progress, fingerprint)


def infer_frames(
    segment: Segment,
    label_set: LabelSet,
    found: FrameList,
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
      found: the frames.
      config: what to write where.
      progress: takes a line every few seconds, one for each failure, and one at the end.
      fingerprint: tells the run folder, checkpoint and options apart from others.

    Returns:
      How many frames were done, failed and skipped.

    Raises:
      ValueError: an option that does not fit, or an `out_dir` with results of another fingerprint.
      OSError: the results cannot be written.
    """
    drawn = label_set.select(config.classes.split(",")) if config.classes else None
    results = _Results(Path(config.out_dir), tuple(config.outputs.split(",")), label_set, drawn)
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
    source = FrameReader()

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
    path = out_dir / RESULTS_MARK
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
            f"{RESULTS_MARK}. Remedy: another --out_dir"
        )
    else:
        text = json.dumps({"fingerprint": fingerprint}, indent=2) + "\n"
        write_text(path, text)


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
        write_text(self._notes_path, self._text(self.rows.values(), header=True))
        self._file = self._notes_path.open("a", encoding="utf-8", newline="")
        return self

    def append(self, row: dict[str, str]) -> None:
        self.rows[row["frame"]] = row
        with naming(self._notes_path):
            self._file.write(self._text([row], header=False))
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # all rows are flushed; what was not, has been told
            self._file.close()

    def finish(self, names: Sequence[str]) -> None:
        rows = [self.rows[name] for name in names]
        write_text(self._path, self._text(rows, header=True))
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
    def spent(self) -> str:
        return duration(time.monotonic() - self._started)

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
            left = duration((self._total - self._count) / rate)
            self._progress(
                f"frame {self._count} of {self._total}, {rate:.1f} frames/s, {left} left"
            )
