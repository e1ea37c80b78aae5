"""Keeps tf.data's threads from calling Python while the interpreter shuts down."""

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Admits calls until the interpreter shuts down, then waits for the running calls to end.

    The threads of a tf.data iterator that was not deleted outlive the interpreter. If one then
    calls Python, the process aborts or hangs.
    """

    _QUIET_SECS = 0.1
    _TIMEOUT_SECS = 60.0  # no call takes that long, but one may wait forever (see below)

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = self._refused = 0
        self._closed = False
        atexit.register(self._close)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a call as running during the block; raises InterruptedError on shutdown."""
        with self._changed:
            if self._closed:
                self._refused += 1
                raise InterruptedError("the program is ending")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            # Garbage collection during a call may delete the iterator that made the call. The
            # iterator then waits for that same call to end.
            self._changed.wait_for(lambda: not self._running, self._TIMEOUT_SECS)
        refused = -1
        while refused != self._refused:  # iterators read until their buffers are full of refusals
            refused = self._refused
            time.sleep(self._QUIET_SECS)


gate = Gate()
