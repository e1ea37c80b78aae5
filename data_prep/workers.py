"""Converts shards in several processes, one per core."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

from data_prep.convert import Job, convert_shard
from mapseg.machine import cores
from mapseg.progress import REPORT_SECS, make_reporter


def convert_shards(
    jobs: Sequence[Job], done: int, workers: int, progress: Callable[[str], None]
) -> None:
    """Runs jobs, each of which writes its shard atomically.

    Args:
      jobs: shards to make.
      done: number of pairs that are already finished.
      workers: number of processes; 0 uses one per core, 1 only this process.
      progress: receives lines to show.

    Raises:
      ValueError: a pair that cannot be converted.
      OSError: a file cannot be written.
    """
    report = make_reporter(done, done + sum(len(job.pairs) for job in jobs), "pairs", progress)
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        count = itertools.count(1)
        for job in jobs:
            convert_shard(job, lambda: report(next(count)))
        return
    context = multiprocessing.get_context("spawn")
    try:
        counter, stop = context.Value("q", 0), context.Event()
    except OSError as error:
        raise OSError(
            f"processes must be able to share memory (/dev/shm); got: {error}. Remedy: --workers=1"
        ) from error
    with ProcessPoolExecutor(workers, context, _start_worker, (counter, stop)) as pool:
        try:
            with _interrupts_ignored():
                pending = {pool.submit(_convert, job) for job in jobs}
            while pending:
                ended, pending = wait(pending, REPORT_SECS, FIRST_EXCEPTION)
                report(counter.value)
                for future in ended:
                    future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died, perhaps for lack of memory. Remedy: use fewer --workers; "
                "finished shards are kept"
            ) from error
        finally:
            stop.set()  # a running worker finishes its pair and removes its unfinished shard
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Makes processes started in the block ignore Ctrl-C permanently; their parent stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_counter: Any = None
_stop: Any = None


def _start_worker(counter: Any, stop: Any) -> None:
    global _counter, _stop
    _counter, _stop = counter, stop
    cv2.setNumThreads(1)  # the processes share the cores
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _convert(job: Job) -> None:
    convert_shard(job, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1
    if _stop.is_set():
        raise InterruptedError("the conversion was stopped")
