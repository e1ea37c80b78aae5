"""How the processes of a distributed run wait for each other before TensorFlow connects them.

TensorFlow waits for a missing process silently and ignores signals. So the processes meet first:
all send a greeting to worker 0, at the address where TensorFlow will listen later. Once all have
connected, worker 0 answers that they may start, or why not. A waiting worker sends a heartbeat
every half second. This distinguishes two processes with the same index from one process that was
lost silently and restarted.
"""

import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mapseg.progress import duration
from mapseg.training.callers import Caller, Callers

_TICK_SECS = 0.2
_REPORT_SECS = 10.0
_LARGEST_ANSWER = 1 << 16
_BEAT_SECS = 0.5
_SETTLING_SECS = 1.0  # after the last worker: another with the same index may still connect


@dataclass(frozen=True)
class Cluster:
    """The processes that train together, and the index of this one.

    Attributes:
      workers: `host:port` of each process; all must be able to reach the first.
      index: index of this process; 0 writes the run folder.
    """

    workers: tuple[str, ...]
    index: int


def read_cluster() -> Cluster | None:
    """Reads TensorFlow's environment variable TF_CONFIG; returns None if it is not set.

    Raises:
      ValueError: it does not have the documented format, or has roles other than worker.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        raw = json.loads(text)
        roles, task = raw["cluster"], raw["task"]
        workers = tuple(str(address) for address in roles["worker"])
        index = int(task["index"])
        have_ports = [":" in w and w.rpartition(":")[2].isdigit() for w in workers]
        valid = set(roles) == {"worker"} and task["type"] == "worker" and all(have_ports)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_bad_tf_config(text)) from error
    if not valid or not 0 <= index < len(workers):
        raise ValueError(_bad_tf_config(text))
    return Cluster(workers, index)


def _bad_tf_config(text: str) -> str:
    return (
        'TF_CONFIG must be like {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": '
        f'{{"type": "worker", "index": 0}}}} with this process\'s index, and no other roles; got '
        f"{text[:300]}. Remedy: set it as docs/several_machines.md shows, or unset it"
    )


def meet(
    cluster: Cluster,
    greeting: Mapping[str, str],
    timeout_secs: float,
    progress: Callable[[str], None],
    stopping: Callable[[], bool],
) -> bool:
    """Waits until all processes of the cluster have connected.

    Args:
      cluster: the expected processes.
      greeting: values that must be equal on all workers, by name.
      timeout_secs: how long to wait.
      progress: receives a line every 10 s.
      stopping: polled while waiting; true ends the wait.

    Returns:
      True once all are connected, False if `stopping` ended the wait.

    Raises:
      ConnectionError: a process did not connect in time, or the port is in use.
      ValueError: the greetings differ, or two processes have the same index.
    """
    wait = _Wait(cluster, timeout_secs, progress, stopping)
    return _receive(wait, greeting) if cluster.index == 0 else _call(wait, greeting)


@dataclass
class _Wait:
    """The timeout of a wait, and its progress lines."""

    cluster: Cluster
    timeout_secs: float
    progress: Callable[[str], None]
    stopping: Callable[[], bool]
    started: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)

    def is_over(self) -> bool:
        return time.monotonic() - self.started > self.timeout_secs

    def report(self, missing: list[int]) -> None:
        now = time.monotonic()
        if now - self.reported >= _REPORT_SECS:
            self.reported = now
            elapsed, limit = duration(now - self.started), duration(self.timeout_secs)
            self.progress(f"waiting for {self.names(missing)}: {elapsed} of {limit}")

    def names(self, workers: list[int]) -> str:
        return ", ".join(f"worker {i} ({self.cluster.workers[i]})" for i in workers)


def _receive(wait: _Wait, greeting: Mapping[str, str]) -> bool:
    """Collects the greetings on worker 0, and answers all workers once the last has connected."""
    callers = Callers(len(wait.cluster.workers))
    server = _listener(wait.cluster)
    with server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        try:
            settled = time.monotonic()
            while callers.missing or time.monotonic() - settled < _SETTLING_SECS:
                if wait.stopping():
                    return False
                if callers.missing:
                    settled = time.monotonic()
                    if wait.is_over():
                        problem = _late(wait, callers.missing)
                        callers.answer(problem)
                        raise ConnectionError(problem)
                    wait.report(callers.missing)
                problem = _poll(selector, server, callers)
                if problem:
                    callers.answer(problem)
                    raise ValueError(problem)
            problem = callers.differences(greeting)
            callers.answer(problem)
            if problem:
                raise ValueError(problem)
        finally:
            for key in list(selector.get_map().values()):
                if key.fileobj is not server:
                    key.fileobj.close()  # type: ignore[union-attr]
    return True


def _poll(selector: selectors.BaseSelector, server: socket.socket, callers: Callers) -> str:
    """Serves the connections for one tick; returns what is wrong with the cluster, or ""."""
    for key, _ in selector.select(_TICK_SECS):
        if key.fileobj is server:
            connection, _address = server.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, Caller(connection))
            continue
        caller = key.data
        try:
            problem = callers.receive(caller)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            selector.unregister(caller.connection)  # closed, or not from a worker
            caller.connection.close()
            callers.remove(caller)
            continue
        if problem:
            return problem
    return ""


def _listener(cluster: Cluster) -> socket.socket:
    """Listens on this process's port."""
    port = int(cluster.workers[cluster.index].rpartition(":")[2])
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise ConnectionError(
            f"worker {cluster.index} must be able to listen on port {port} of TF_CONFIG; {error}. "
            "Remedy: end the program that uses the port, which may be another process with index "
            f"{cluster.index}: each needs its own; or set another port in every worker's TF_CONFIG"
        ) from error


def _call(wait: _Wait, greeting: Mapping[str, str]) -> bool:
    """Greets worker 0 from another worker until it answers."""
    host, _, port = wait.cluster.workers[0].rpartition(":")
    _listener(wait.cluster).close()  # TensorFlow needs the port, but its error would be obscure
    process = f"process {os.getpid()} on {socket.gethostname()}"
    content = {"worker": wait.cluster.index, "process": process, **greeting}
    message = json.dumps(content).encode() + b"\n"
    while not wait.stopping():
        if wait.is_over():
            raise ConnectionError(_late(wait, [0]))
        wait.report([0])
        try:
            with socket.create_connection((host, int(port)), timeout=_TICK_SECS) as connection:
                connection.sendall(message)
                answer = _await_answer(wait, connection)
        except (OSError, ValueError, KeyError, TypeError):  # unreachable, or not yet worker 0
            time.sleep(_TICK_SECS)
            continue
        if answer is None:  # worker 0 closed the connection, or this worker must stop
            time.sleep(_TICK_SECS)
            continue
        if answer:
            raise ValueError(answer)
        return True
    return False


def _await_answer(wait: _Wait, connection: socket.socket) -> str | None:
    """Waits for worker 0's answer: what is wrong, "" if nothing is; None if there is no answer."""
    received = b""
    last_beat = time.monotonic()
    while not received.endswith(b"\n"):
        wait.report([0])
        if wait.stopping() or wait.is_over():
            return None
        if time.monotonic() - last_beat >= _BEAT_SECS:
            last_beat = time.monotonic()
            connection.sendall(b"\n")
        try:
            part = connection.recv(_LARGEST_ANSWER)
        except TimeoutError:
            continue
        if not part:
            return None
        received += part
    return str(json.loads(received)["problem"])


def _late(wait: _Wait, missing: list[int]) -> str:
    return (
        f"all workers of TF_CONFIG must connect within {duration(wait.timeout_secs)}; "
        f"{wait.names(missing)} did not. Remedy: start the same command there, each process with "
        "a different index, check that the address is reachable, or raise --peer_timeout_secs"
    )
