"""The inference pipeline: decodes frames, segments them in batches and writes the results.

Decoding and encoding run in threads, a few frames ahead of and behind the network, so memory is
bounded and results keep the order of the frames. The thread that writes a result waits for the
GPU.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mapseg.inference.batching import group_frames
from mapseg.inference.frame_table import FrameTable
from mapseg.inference.plan import Task
from mapseg.inference.reading import EndedVideoError, FrameReader
from mapseg.inference.results import Results, Row, read_digest
from mapseg.inference.videos import Videos, is_disk_full

if TYPE_CHECKING:
    from mapseg.inference.predictor import Segmentation

_AHEAD = 4  # frames beyond a batch that are decoded in advance, or still being written
_THREADS = min(4, os.cpu_count() or 1)

Segment = Callable[[np.ndarray], Sequence["Segmentation"]]


class _Loaded(NamedTuple):
    image: np.ndarray
    secs: float | None  # time in its video
    ids: np.ndarray | None  # of an earlier call
    digest: str  # of the file


class _Segmented(NamedTuple):
    """A frame with stored ids, or with ids computed in a batch.

    Attributes:
      image: [H, W, 3] uint8.
      secs: time of the frame in its video; None for an image.
      digest: of the file.
      stored_ids: [H, W] uint8 classes that an earlier call wrote, if any.
      batch: otherwise, the network's predictions for the frame's batch.
      place: index of the frame in the batch.
      call_secs: duration of the call for the batch.
    """

    image: np.ndarray
    secs: float | None
    digest: str
    stored_ids: np.ndarray | None = None
    batch: Sequence["Segmentation"] = ()
    place: int = 0
    call_secs: float = 0.0

    def read(self) -> tuple[np.ndarray, float, float, float]:
        """Returns ids, confidence, scale and ms; the last three are nan for stored ids.

        On a GPU it waits for the batch. The ms are the frame's share of the call and of this wait.
        """
        if self.stored_ids is not None:
            return self.stored_ids, math.nan, math.nan, math.nan
        started = time.perf_counter()
        result = self.batch[self.place]
        wait_secs = time.perf_counter() - started
        ms = 1000 * (self.call_secs + wait_secs) / len(self.batch)
        return result.ids, result.confidence, result.scale, ms


class Outcome(NamedTuple):
    """The outcome of a task.

    Attributes:
      row: the frame's row in `frames.csv`.
      stored: its row and files are from an earlier call.
      picture: the overlay, if a video is written.
      secs: time of the frame in its video; None for an image.
    """

    row: Row
    stored: bool
    picture: np.ndarray | None = None
    secs: float | None = None


def do_tasks(
    segment: Segment,
    tasks: Sequence[Task],
    results: Results,
    table: FrameTable,
    videos: Videos,
    batch_size: int,
) -> Generator[Outcome, None, None]:
    """Runs the tasks in order, with decoding and writing in the background; yields outcomes.

    A frame that cannot be read, segmented, drawn or written does not stop the others, unless the
    disk is full. Frames after the first undecodable one of a video have no outcome.

    Args:
      segment: frames [B, H, W, 3] uint8 -> a prediction for each; called from this thread.
      tasks: the frames to process.
      results: writes the files.
      table: receives the rows.
      videos: receives the overlays.
      batch_size: maximum number B of consecutive frames of one size that are segmented together.
    """
    source = FrameReader()

    def load(task: Task) -> _Loaded:
        # Before the image is read: if the file is replaced in between, the next call segments it.
        digest = read_digest(task.frame.path, task.source.state)
        image, secs = source.read(task.frame.path, task.frame.number)
        return _Loaded(image, secs, _stored_ids(task, image, results), digest)

    def finish(task: Task, writing: "Future[Outcome]") -> Outcome:
        outcome = writing.result()
        if outcome.picture is not None:
            videos.add(task.frame, outcome.picture, outcome.secs)
        if not outcome.stored:
            table.append(outcome.row)  # last: a row means that the files are complete
        return outcome._replace(picture=None)

    # Frames of a video must be decoded in order; images can be decoded in parallel.
    readers = 1 if any(task.frame.number is not None for task in tasks) else _THREADS
    with (
        ThreadPoolExecutor(readers) as reading,
        ThreadPoolExecutor(_THREADS) as writing,
        ThreadPoolExecutor(1) as finishing,  # one thread keeps the order
    ):
        unfinished: deque[Future[Outcome]] = deque()
        loaded = _ahead(reading, load, tasks, batch_size + _AHEAD)
        for batch in group_frames(loaded, _to_segment, batch_size):
            for task, segmented in _segment_batch(segment, batch):
                written = writing.submit(_write, task, segmented, results)
                unfinished.append(finishing.submit(finish, task, written))
            while len(unfinished) > _AHEAD + batch_size - 1:
                yield unfinished.popleft().result()
        while unfinished:
            yield unfinished.popleft().result()


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[Task], _Loaded], tasks: Iterable[Task], count: int
) -> Iterator[tuple[Task, _Loaded | Exception]]:
    """Yields the loaded tasks in order while the next ones are loading."""
    waiting: deque[tuple[Task, Future[_Loaded]]] = deque()
    for task in tasks:
        waiting.append((task, pool.submit(load, task)))
        if len(waiting) >= count:
            yield from _loaded(*waiting.popleft())
    while waiting:
        yield from _loaded(*waiting.popleft())


def _loaded(task: Task, loading: "Future[_Loaded]") -> Iterator[tuple[Task, _Loaded | Exception]]:
    item: _Loaded | Exception
    try:
        item = loading.result()
    except EndedVideoError:
        return  # the error of an earlier frame gives the cause
    except Exception as error:  # of any kind: one frame must not stop the others
        item = error
    yield task, item


def _to_segment(member: tuple[Task, _Loaded | Exception]) -> np.ndarray | None:
    """Returns the image of a frame that needs the network."""
    _, loaded = member
    return loaded.image if isinstance(loaded, _Loaded) and loaded.ids is None else None


def _stored_ids(task: Task, image: np.ndarray, results: Results) -> np.ndarray | None:
    """Reads the stored ids of a frame; None if there are none or they are damaged."""
    if not task.stored:
        return None
    try:
        ids = results.read_ids(task.frame.name)
    except (OSError, SyntaxError, ValueError):
        return None
    return ids if ids.shape == image.shape[:2] else None


def _segment_batch(
    segment: Segment, group: Sequence[tuple[Task, _Loaded | Exception]]
) -> Iterator[tuple[Task, _Segmented | Exception]]:
    """Segments the frames of a group that need it: in one batch or, if that fails, one by one."""
    frames = [image for member in group if (image := _to_segment(member)) is not None]
    started = time.perf_counter()
    batch: Sequence[Segmentation] | Exception = ()
    try:
        batch = segment(np.stack(frames)) if frames else ()
    except Exception as error:  # of any kind, as above
        if len(frames) > 1:
            for member in group:
                yield from _segment_batch(segment, [member])
            return
        batch = error
    call_secs, place = time.perf_counter() - started, 0
    for task, item in group:
        if isinstance(item, Exception):
            yield task, item
        elif item.ids is not None:
            yield task, _Segmented(item.image, item.secs, item.digest, item.ids)
        elif isinstance(batch, Exception):
            yield task, batch
        else:
            yield (
                task,
                _Segmented(item.image, item.secs, item.digest, None, batch, place, call_secs),
            )
            place += 1


def _write(task: Task, segmented: _Segmented | Exception, results: Results) -> Outcome:
    """Writes the files of a frame; returns its row and its overlay for the video."""
    frame = task.frame
    try:
        if isinstance(segmented, Exception):
            raise segmented
        image, (ids, confidence, scale, ms) = segmented.image, segmented.read()
        stored = segmented.stored_ids is not None
        ids = ids if stored else results.classes.of_prediction(ids)
        overlay = None
        if {"overlay", "video"} & {*results.outputs}:
            overlay = results.overlay(image, ids)
        if not stored:
            results.write(frame.name, image, ids, overlay)
        source = task.source._replace(state=f"{task.source.state}:{segmented.digest}")
        row = results.row(frame, source, ids, scale, ms, confidence)
        picture = overlay if "video" in results.outputs else None
        return Outcome(row, stored, picture, segmented.secs)
    except Exception as error:
        if is_disk_full(error):
            raise
        results.remove(frame.name)
        row = results.failed_row(frame.name, task.source, frame.video, error)
        return Outcome(row, False)
