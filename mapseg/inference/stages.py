"""The stages of a frame: it is decoded, segmented, written.

Decoding and encoding run in threads around the network, a few frames ahead and behind, so memory
is bounded and the order of the results is the order of the frames.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mapseg.inference.frames import Frame
from mapseg.inference.reading import FrameReader
from mapseg.inference.results import Journal, Results, Row
from mapseg.inference.videos import Videos

if TYPE_CHECKING:
    from mapseg.inference.predictor import Segmentation

_AHEAD = 4  # frames decoded before the network needs them, and as many still being written
_THREADS = min(4, os.cpu_count() or 1)

Segment = Callable[[np.ndarray], "Segmentation"]


class Task(NamedTuple):
    """A frame that needs work."""

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


def plan_tasks(frames: Sequence[Frame], results: Results, rows: Mapping[str, Row]) -> list[Task]:
    """Lists the frames that need work: those not done, and all of a video that is not whole."""
    done = {f.name for f in frames if f.name in rows and results.exist(f.name)}
    videos: set[str] = set()
    if "video" in results.outputs:
        there = {name: results.path("video", name).is_file() for name in {f.video for f in frames}}
        videos = {f.video for f in frames if f.name not in done or not there[f.video]}
    if "ids" not in results.outputs:
        done -= {f.name for f in frames if f.video in videos}
    return [Task(f, f.name in done) for f in frames if f.name not in done or f.video in videos]


def do_tasks(
    segment: Segment,
    tasks: Sequence[Task],
    results: Results,
    journal: Journal,
    videos: Videos,
) -> Generator[tuple[Task, str], None, None]:
    """Does the tasks in order, reading ahead and writing behind; yields (task, status)."""
    source = FrameReader()

    def load(task: Task) -> _Loaded:
        image = source.read(task.frame.path, task.frame.number)
        return _Loaded(image, results.read_ids(task.frame.name) if task.stored else None)

    def finish(task: Task, writing: "Future[_Outcome]") -> tuple[Task, str]:
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
        unfinished: deque[Future[tuple[Task, str]]] = deque()
        for task, loading in _ahead(reading, load, tasks):
            written = writing.submit(_write, task, _segment_one(segment, loading), results)
            unfinished.append(finishing.submit(finish, task, written))
            if len(unfinished) > _AHEAD:
                yield unfinished.popleft().result()
        while unfinished:
            yield unfinished.popleft().result()


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[Task], _Loaded], tasks: Iterable[Task]
) -> Iterator[tuple[Task, "Future[_Loaded]"]]:
    """Yields the tasks in order while the next ones are being loaded."""
    waiting: deque[tuple[Task, Future[_Loaded]]] = deque()
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


def _write(task: Task, segmented: _Segmented | ValueError, results: Results) -> _Outcome:
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
