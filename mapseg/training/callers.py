"""The workers connected to worker 0, and whether their greetings agree."""

import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

_LARGEST_GREETING = 1 << 16
_ANSWER_SECS = 1.0


@dataclass(eq=False)
class Caller:
    """A connection to worker 0, and its greeting."""

    connection: socket.socket
    worker: int = 0  # 0 until its greeting is complete
    greeting: dict[str, str] = field(default_factory=dict)
    process: str = ""
    buffer: bytearray = field(default_factory=bytearray)


@dataclass(eq=False)
class Callers:
    """The workers connected to worker 0.

    Attributes:
      count: number of workers, worker 0 included.
      current: the latest connection of each worker.
      replaced: older connections with these indices; if one is still alive, two processes share
        an index.
    """

    count: int
    current: dict[int, Caller] = field(default_factory=dict)
    replaced: list[Caller] = field(default_factory=list)

    @property
    def missing(self) -> list[int]:
        """The workers that are not connected, ascending."""
        return [i for i in range(1, self.count) if i not in self.current]

    def receive(self, caller: Caller) -> str:
        """Reads from a connection; returns what is wrong with the cluster, or an empty string.

        Raises:
          ValueError, KeyError, TypeError, AttributeError, OSError: the connection was closed, or
            does not come from a worker.
        """
        part = caller.connection.recv(_LARGEST_GREETING)
        if not part:
            raise OSError("the connection was closed")
        if caller.worker:  # a heartbeat
            return self._duplicate(caller) if caller in self.replaced else ""
        caller.buffer += part
        if len(caller.buffer) >= _LARGEST_GREETING:
            raise ValueError("the greeting is too long")
        if caller.buffer.endswith(b"\n"):
            greeting = json.loads(caller.buffer)
            worker, process = int(greeting.pop("worker")), str(greeting.pop("process"))
            if not 0 < worker < self.count:
                raise ValueError("no such worker")
            caller.worker, caller.process, caller.greeting = worker, process, greeting
            if worker in self.current:
                self.replaced.append(self.current[worker])
            self.current[worker] = caller
        return ""

    def remove(self, caller: Caller) -> None:
        """Removes a closed connection; the one that it replaced, if any, becomes current again."""
        self.replaced = [other for other in self.replaced if other is not caller]
        if self.current.get(caller.worker) is not caller:
            return
        del self.current[caller.worker]
        for other in self.replaced:
            if other.worker == caller.worker:
                self.current[other.worker] = other
        self.replaced = [other for other in self.replaced if other not in self.current.values()]

    def answer(self, problem: str) -> None:
        """Sends all workers what is wrong; an empty string if nothing is."""
        text = json.dumps({"problem": problem}).encode() + b"\n"
        for caller in (*self.current.values(), *self.replaced):
            # If a worker is gone, TensorFlow notices within seconds and reports it.
            with contextlib.suppress(OSError):
                caller.connection.settimeout(_ANSWER_SECS)
                caller.connection.sendall(text)
                caller.connection.shutdown(socket.SHUT_WR)
        for caller in (*self.current.values(), *self.replaced):
            # Read to the end: closing with unread data may discard the answer in transit.
            with contextlib.suppress(OSError):
                while caller.connection.recv(_LARGEST_GREETING):
                    pass

    def differences(self, expected: Mapping[str, str]) -> str:
        """Describes how the greetings differ from worker 0's; empty if they are equal."""
        for worker, caller in sorted(self.current.items()):
            actual = caller.greeting
            differing = [
                f"{name}={actual.get(name)} on worker {worker}, "
                f"{name}={expected.get(name)} on worker 0"
                for name in sorted(expected.keys() | actual.keys())
                if expected.get(name) != actual.get(name)
            ]
            if differing:
                return (
                    f"all workers must be started with the same flags, and share run_dir on one "
                    f"disk; got {'; '.join(differing)}. Remedy: give all workers the same flags"
                )
        return ""

    def _duplicate(self, replaced: Caller) -> str:
        current = self.current.get(replaced.worker)
        if current is None:
            return ""
        return (
            f"index {replaced.worker} of TF_CONFIG must be one process; got two, "
            f"{replaced.process} and {current.process}. Remedy: give each process a different index"
        )
