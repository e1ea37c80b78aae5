"""Camera frames -> label maps, overlays, panels and videos, each at the frame's own size.

Decoding and encoding run in threads around the network, a few frames ahead and behind, so memory
is bounded and the order of the results is the order of the frames.
"""

import contextlib
import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mapseg import pictures
from mapseg.config import InferConfig, PredictConfig
from mapseg.inference.frames import Frame, FrameList, FrameReader, find_frames
from mapseg.inference.results import Journal, Results, Row, claim
from mapseg.inference.videos import Videos
from mapseg.labels import LabelSet
from mapseg.progress import duration, make_reporter
from mapseg.runs.checkpoints import find_checkpoint
from mapseg.runs.folder import open_run

if TYPE_CHECKING:  # TensorFlow takes seconds to import; what is missing is reported before
    from mapseg.inference.predictor import Predictor, Segmentation

_AHEAD = 4  # frames decoded before the network needs them, and as many still being written
_THREADS = min(4, os.cpu_count() or 1)

Segment = Callable[[np.ndarray], "Segmentation"]


class Counts(NamedTuple):
    """How many frames were segmented now, could not be, and were there from a call before."""

    done: int
    failed: int
    skipped: int


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
    from mapseg.inference.predictor import load_predictor

    predictor = load_predictor(run, predicting, path)
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

    from mapseg.inference.predictor import Predictor
    from mapseg.model.published import CITYSCAPES_LONG_SIDE_PX, load_deeplab

    model, label_set = load_deeplab(prefix)
    # The index holds a checksum of every weight.
    by = f"{Path(prefix).resolve()} ({_digest(Path(f'{prefix}.index'))})"
    predictor = Predictor(model, predicting, CITYSCAPES_LONG_SIDE_PX)
    progress(f"xception65, {prefix}, {len(label_set.classes)} classes of Cityscapes")
    return _infer(predictor, label_set, found, config, progress, by)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _infer(
    predictor: "Predictor",
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
    return infer_frames(predictor.segment, label_set, found, config, progress, fingerprint)


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
    results = Results(Path(config.out_dir), tuple(config.outputs.split(",")), label_set, drawn)
    for line in found.skipped:
        progress(line)
    claim(results.out_dir, fingerprint)
    pictures.write_png(results.out_dir / "legend.png", pictures.legend(label_set))
    journal = Journal(results.out_dir / "frames.csv", results.columns)
    tasks = _plan(found.frames, results, journal.rows)
    report = make_reporter(0, len(tasks), "frames", progress)
    started, done, failed = time.monotonic(), 0, 0
    with (
        journal,
        Videos(lambda name: results.path("video", name), config.every) as videos,
        contextlib.closing(_work(segment, tasks, results, journal, videos)) as finished,
    ):
        for count, (task, status) in enumerate(finished, start=1):
            if status != "ok":
                failed += 1
                progress(f"{task.frame.name}: {status}")
            elif not task.stored:
                done += 1
            report(count)
    journal.finish([frame.name for frame in found.frames])
    counts = Counts(done, failed, len(found.frames) - done - failed)
    progress(
        f"{len(found.frames)} frames: {done} done, {failed} failed, {counts.skipped} done before, "
        f"in {duration(time.monotonic() - started)}; see {results.out_dir}"
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
    ids: np.ndarray
    confidence: float = math.nan  # nan: its ids were stored
    scale: float = math.nan
    ms: float = math.nan


class _Outcome(NamedTuple):
    row: Row
    picture: np.ndarray | None  # for the video


def _plan(frames: Sequence[Frame], results: Results, rows: Mapping[str, Row]) -> list[_Task]:
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
    results: Results,
    journal: Journal,
    videos: Videos,
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
            written = writing.submit(_write, task, _segment_one(segment, loading), results)
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
        if ids is not None:
            return _Segmented(image, ids)
        started = time.perf_counter()
        ids, confidence, scale = segment(image)
        return _Segmented(image, ids, confidence, scale, 1000 * (time.perf_counter() - started))
    except ValueError as error:
        return error


def _write(task: _Task, segmented: _Segmented | ValueError, results: Results) -> _Outcome:
    """Writes the files of a frame; gives its row, and its picture for the video."""
    name = task.frame.name
    if isinstance(segmented, ValueError):
        return _Outcome(results.failed_row(name, segmented), None)
    image, ids, confidence, scale, ms = segmented
    tinted = None
    if {"overlay", "video"} & {*results.outputs}:
        tinted = results.overlay(image, ids)
    if not task.stored:
        results.write(name, image, ids, tinted)
    row = results.row(name, ids, scale, ms, confidence)
    return _Outcome(row, tinted if "video" in results.outputs else None)
