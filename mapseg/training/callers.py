"""The workers that have called worker 0: what each has said, and whether they fit together."""

import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

_LARGEST_GREETING = 1 << 16
_ANSWER_SECS = 1.0


@dataclass(eq=False)
class Caller:
    """A connection to worker 0, and what it has said."""

    connection: socket.socket
    worker: int = 0  # until its greeting is whole
    said: dict[str, str] = field(default_factory=dict)
    process: str = ""
    heard: bytearray = field(default_factory=bytearray)


@dataclass(eq=False)
class Callers:
    """Who has come to worker 0.

    Attributes:
      count: of the workers, worker 0 included.
      there: by worker, the last that came.
      former: those in whose place another one came; if they still live, an index is there twice.
    """

    count: int
    there: dict[int, Caller] = field(default_factory=dict)
    former: list[Caller] = field(default_factory=list)

    @property
    def missing(self) -> list[int]:
        """The workers that have not come, ascending."""
        return [i for i in range(1, self.count) if i not in self.there]

    def hear(self, caller: Caller) -> str:
        """Takes what a connection has sent; returns what is wrong with the cluster, or nothing.

        Raises:
          ValueError, KeyError, TypeError, AttributeError, OSError: it ended, or is no worker's.
        """
        part = caller.connection.recv(_LARGEST_GREETING)
        if not part:
            raise OSError("it ended")
        if caller.worker:  # a sign of life
            return self._twice(caller) if caller in self.former else ""
        caller.heard += part
        if len(caller.heard) >= _LARGEST_GREETING:
            raise ValueError("no greeting is so long")
        if caller.heard.endswith(b"\n"):
            said = json.loads(caller.heard)
            worker, process = int(said.pop("worker")), str(said.pop("process"))
            if not 0 < worker < self.count:
                raise ValueError("no such worker")
            caller.worker, caller.process, caller.said = worker, process, said
            if worker in self.there:
                self.former.append(self.there[worker])
            self.there[worker] = caller
        return ""

    def forget(self, caller: Caller) -> None:
        """Drops a connection; one in whose place it came counts again."""
        self.former = [other for other in self.former if other is not caller]
        if self.there.get(caller.worker) is not caller:
            return
        del self.there[caller.worker]
        for other in self.former:
            if other.worker == caller.worker:
                self.there[other.worker] = other
        self.former = [other for other in self.former if other not in self.there.values()]

    def answer(self, problem: str) -> None:
        """Tells everyone what is wrong; empty for nothing."""
        text = json.dumps({"problem": problem}).encode() + b"\n"
        for caller in (*self.there.values(), *self.former):
            # One that has gone is missed by TensorFlow within seconds, which says so.
            with contextlib.suppress(OSError):
                caller.connection.settimeout(_ANSWER_SECS)
                caller.connection.sendall(text)
                caller.connection.shutdown(socket.SHUT_WR)
        for caller in (*self.there.values(), *self.former):
            # To the end: what is not read when it is closed may cost the other side the answer.
            with contextlib.suppress(OSError):
                while caller.connection.recv(_LARGEST_GREETING):
                    pass

    def differences(self, own: Mapping[str, str]) -> str:
        """Says what the greetings differ in; empty where they do not."""
        for worker, caller in sorted(self.there.items()):
            said = caller.said
            differing = [
                f"{name}={said.get(name)} on worker {worker}, {name}={own.get(name)} on worker 0"
                for name in sorted(own.keys() | said.keys())
                if own.get(name) != said.get(name)
            ]
            if differing:
                return (
                    f"every worker must be started alike, with the same run_dir on a disk that all "
                    f"share; got {'; '.join(differing)}. Remedy: give all the same flags"
                )
        return ""

    def _twice(self, former: Caller) -> str:
        other = self.there.get(former.worker)
        if other is None:
            return ""
        return (
            f"index {former.worker} of TF_CONFIG must be one process; got two, {former.process} "
            f"and {other.process}. Remedy: start each process with an index of its own"
        )
