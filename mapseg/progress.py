"""Progress output: durations, numbers of bytes, rates and remaining time."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REPORT_SECS = 3.0
_ELAPSED_SECS = 10.0
_LEFT = " left"  # ends a reporter's line


def duration(secs: float) -> str:
    """Formats a duration: 45s, 12m05s, 3h20m."""
    minutes, rest = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def amount(size: float) -> str:
    """Formats a number of bytes: 61.2 GB, 3.4 MB, 0.7 kB."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


def make_reporter(
    before: int, total: int, what: str, progress: Callable[[str], None]
) -> Callable[[int], None]:
    """Returns a function to call often with the number of finished items; it reports every 3 s.

    Args:
      before: number of items finished earlier.
      total: number of all items, including those.
      what: name of the items, such as pairs.
      progress: called with a line with the rate and the time left.
    """
    started = time.monotonic()
    last = started

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < REPORT_SECS or not done:
            return
        last = now
        rate = done / (now - started)
        left = duration((total - before - done) / rate)
        progress(f"{before + done}/{total} {what}, {rate:.1f} {what}/s, {left}{_LEFT}")

    return report


@contextmanager
def reporting(what: str, progress: Callable[[str], None]) -> Iterator[None]:
    """Reports elapsed time of work without measurable progress, then its duration."""
    started, ended = time.monotonic(), threading.Event()

    def report_elapsed() -> None:
        while not ended.wait(_ELAPSED_SECS):
            progress(f"{what}: {duration(time.monotonic() - started)} so far")

    reporter = threading.Thread(target=report_elapsed, daemon=True)
    reporter.start()
    try:
        progress(f"{what} ...")
        yield
    finally:
        ended.set()
        reporter.join()
    progress(f"{what} took {duration(time.monotonic() - started)}")


def show(text: str) -> None:
    """Prints a line to stderr; on a terminal the next line overwrites a reporter's."""
    if sys.stderr is None:  # stderr is closed
        return
    end = "\r" if sys.stderr.isatty() and text.endswith(_LEFT) else "\n"
    print(f"{text:<79}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)
