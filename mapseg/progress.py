"""Words for people while work goes on: durations, numbers of bytes, a rate now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REPORT_SECS = 3.0
_TELL_SECS = 10.0
_LEFT = " left"  # ends a line of a reporter


def duration(secs: float) -> str:
    """Writes a time for people: 45s, 12m05s, 3h20m."""
    minutes, rest = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def amount(size: float) -> str:
    """Writes a number of bytes for people: 61.2 GB, 3.4 MB, 0.7 kB."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


def make_reporter(
    before: int, total: int, what: str, progress: Callable[[str], None]
) -> Callable[[int], None]:
    """Makes a function to call with the number done, often; it reports every 3 s.

    Args:
      before: how many were done before.
      total: how many there are, those included.
      what: is counted, such as pairs.
      progress: gets a line with the rate and the time left.
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
def telling(what: str, progress: Callable[[str], None]) -> Iterator[None]:
    """Says that something goes on which cannot tell how far it is, and how long it took."""
    started, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        while not ended.wait(_TELL_SECS):
            progress(f"{what}: {duration(time.monotonic() - started)} so far")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        progress(f"{what} ...")
        yield
    finally:
        ended.set()
        teller.join()
    progress(f"{what} took {duration(time.monotonic() - started)}")


def show(text: str) -> None:
    """Shows a line on the error output; on a terminal a reporter's is replaced by the next line."""
    if sys.stderr is None:  # it is closed
        return
    end = "\r" if sys.stderr.isatty() and text.endswith(_LEFT) else "\n"
    print(f"{text:<79}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)
