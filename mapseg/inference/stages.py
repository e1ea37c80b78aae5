"""The stages of a frame: it is decoded, segmented, written.

Decoding and encoding run in threads around the network, a few frames ahead and behind, so memory
is bounded and the order of the results is the order of the frames.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mapseg.inference.frame_table import FrameTable
from mapseg.inference.plan import Task
from mapseg.inference.reading import FrameReader
from mapseg.inference.results import Results, Row
from mapseg.inference.videos import Videos, is_disk_full

if TYPE_CHECKING:
    from mapseg.inference.predictor import Segmentation

_AHEAD = 4  # frames decoded before the network needs them, and as many still being written
_THREADS = min(4, os.cpu_count() or 1)

Segment = Callable[[np.ndarray], "Segmentation"]


class _Loaded(NamedTuple):
    image: np.ndarray
    ids: np.ndarray | None  # the stored ones


class _Segmented(NamedTuple):
    image: np.ndarray
    ids: np.ndarray
    confidence: float = math.nan  # nan: its ids were stored
    scale: float = math.nan
    ms: float = math.nan


class Outcome(NamedTuple):
    """What came of a task.

    Attributes:
      row: of the frame in `frames.csv`.
      stored: its row and files are those of a call before.
      picture: for the video.
    """

    row: Row
    stored: bool
    picture: np.ndarray | None


def do_tasks(
    segment: Segment,
    tasks: Sequence[Task],
    results: Results,
    table: FrameTable,
    videos: Videos,
) -> Generator[Outcome, None, None]:
    """Does the tasks in order, reading ahead and writing behind; yields what came of each.

    A frame that cannot be read, segmented, drawn or written fails alone, unless the disk is full.
    """
    source = FrameReader()

    def load(task: Task) -> _Loaded:
        image = source.read(task.frame.path, task.frame.number)
        return _Loaded(image, _stored_ids(task, image, results))

    def finish(task: Task, writing: "Future[Outcome]") -> Outcome:
        outcome = writing.result()
        if outcome.picture is not None:
            videos.add(task.frame, outcome.picture)
        if not outcome.stored:
            table.append(outcome.row)  # last: a row vouches for the files
        return outcome._replace(picture=None)

    # Frames of a video come one after the other; images may be decoded side by side.
    readers = 1 if any(task.frame.number is not None for task in tasks) else _THREADS
    with (
        ThreadPoolExecutor(readers) as reading,
        ThreadPoolExecutor(_THREADS) as writing,
        ThreadPoolExecutor(1) as finishing,  # one thread, so in order
    ):
        unfinished: deque[Future[Outcome]] = deque()
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


def _stored_ids(task: Task, image: np.ndarray, results: Results) -> np.ndarray | None:
    """Reads the ids of a frame that was done; None where they are damaged: they are made again."""
    if not task.stored:
        return None
    try:
        ids = results.read_ids(task.frame.name)
    except (OSError, SyntaxError, ValueError):
        return None
    return ids if ids.shape == image.shape[:2] else None


def _segment_one(segment: Segment, loading: "Future[_Loaded]") -> _Segmented | Exception:
    try:
        image, ids = loading.result()
        if ids is not None:
            return _Segmented(image, ids)
        started = time.perf_counter()
        ids, confidence, scale = segment(image)
        return _Segmented(image, ids, confidence, scale, 1000 * (time.perf_counter() - started))
    except Exception as error:  # of any kind: no frame may end the work on the others
        return error


def _write(task: Task, segmented: _Segmented | Exception, results: Results) -> Outcome:
    """Writes the files of a frame; gives its row, and its picture for the video."""
    frame = task.frame
    try:
        if isinstance(segmented, Exception):
            raise segmented
        image, ids, confidence, scale, ms = segmented
        stored = math.isnan(scale)
        tinted = None
        if {"overlay", "video"} & {*results.outputs}:
            tinted = results.overlay(image, ids)
        if not stored:
            results.write(frame.name, image, ids, tinted)
        row = results.row(frame, task.source, ids, scale, ms, confidence)
        return Outcome(row, stored, tinted if "video" in results.outputs else None)
    except Exception as error:
        if is_disk_full(error):
            raise
        results.remove(frame.name)
        row = results.failed_row(frame.name, task.source, frame.video, error)
        return Outcome(row, False, None)
