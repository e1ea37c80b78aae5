"""Keeps tf.data's threads from calling Python while the interpreter ends."""

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Admits calls until the interpreter ends; then waits until none is running.

    The threads of a tf.data iterator that nobody deleted outlive the interpreter; one that calls
    Python then aborts the process, or hangs it.
    """

    _QUIET_SECS = 0.1
    _LONGEST_SECS = 60.0  # no call takes that long, but one may wait for ever (below)

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._within = self._refused = 0
        self._closed = False
        atexit.register(self._close)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a call in while the block runs; InterruptedError once the program ends."""
        with self._changed:
            if self._closed:
                self._refused += 1
                raise InterruptedError("the program is ending")
            self._within += 1
        try:
            yield
        finally:
            with self._changed:
                self._within -= 1
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            # A garbage collection within a call may have taken up the iterator that made the call,
            # which waits for its calls to end.
            self._changed.wait_for(lambda: not self._within, self._LONGEST_SECS)
        refused = -1
        while refused != self._refused:  # iterators read on until they are full of refusals
            refused = self._refused
            time.sleep(self._QUIET_SECS)


gate = Gate()
