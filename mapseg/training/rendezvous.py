"""The processes of a training over several machines: who they are, and that all have come.

TensorFlow itself waits for a missing process without a word, deaf to signals. So the processes meet
first: all send a greeting to worker 0, at the address where TensorFlow will then listen. It lets
them go on when everyone is there and has said the same, or tells everyone why not. Whoever waits
sends a sign of life every half second: so two processes of one index are told from one that was
lost without a word and started again.
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
_SETTLING_SECS = 1.0  # after the last has come: a second one of the same index may come beside it


@dataclass(frozen=True)
class Cluster:
    """The processes that train together, and which of them this one is.

    Attributes:
      workers: `host:port` of each; all must reach the first.
      index: this process's place among them; 0 writes the run folder.
    """

    workers: tuple[str, ...]
    index: int


def read_cluster() -> Cluster | None:
    """Reads TF_CONFIG (TensorFlow's variable of the environment); None where it is not set.

    Raises:
      ValueError: it is not what TensorFlow documents, or has other roles than workers.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        raw = json.loads(text)
        roles, task = raw["cluster"], raw["task"]
        workers = tuple(str(address) for address in roles["worker"])
        index = int(task["index"])
        whole = [":" in w and w.rpartition(":")[2].isdigit() for w in workers]
        sound = set(roles) == {"worker"} and task["type"] == "worker" and all(whole)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_bad_tf_config(text)) from error
    if not sound or not 0 <= index < len(workers):
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
    """Waits until every process of the cluster has come.

    Args:
      cluster: who is to come.
      greeting: what must be the same everywhere: name -> value.
      timeout_secs: how long to wait.
      progress: takes a line every 10 s.
      stopping: asked all the while.

    Returns:
      Whether all are there; no, if `stopping` said so.

    Raises:
      ConnectionError: they did not come in time, or the port is taken.
      ValueError: the greetings differ.
    """
    wait = _Wait(cluster, timeout_secs, progress, stopping)
    return _receive(wait, greeting) if cluster.index == 0 else _call(wait, greeting)


@dataclass
class _Wait:
    """A wait's end, and its lines of progress."""

    cluster: Cluster
    timeout_secs: float
    progress: Callable[[str], None]
    stopping: Callable[[], bool]
    started: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)

    def is_over(self) -> bool:
        return time.monotonic() - self.started > self.timeout_secs

    def tell(self, missing: list[int]) -> None:
        now = time.monotonic()
        if now - self.reported >= _REPORT_SECS:
            self.reported = now
            gone, whole = duration(now - self.started), duration(self.timeout_secs)
            self.progress(f"waiting for {self.names(missing)}: {gone} of {whole}")

    def names(self, workers: list[int]) -> str:
        return ", ".join(f"worker {i} ({self.cluster.workers[i]})" for i in workers)


def _receive(wait: _Wait, own: Mapping[str, str]) -> bool:
    """Worker 0: takes the others' greetings, and answers all at once when the last has come."""
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
                    wait.tell(callers.missing)
                problem = _take(selector, server, callers)
                if problem:
                    callers.answer(problem)
                    raise ValueError(problem)
            problem = callers.differences(own)
            callers.answer(problem)
            if problem:
                raise ValueError(problem)
        finally:
            for key in list(selector.get_map().values()):
                if key.fileobj is not server:
                    key.fileobj.close()  # type: ignore[union-attr]
    return True


def _take(selector: selectors.BaseSelector, server: socket.socket, callers: Callers) -> str:
    """Takes what has come within a tick; returns what is wrong with the cluster, or nothing."""
    for key, _ in selector.select(_TICK_SECS):
        if key.fileobj is server:
            connection, _address = server.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, Caller(connection))
            continue
        caller = key.data
        try:
            problem = callers.hear(caller)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            selector.unregister(caller.connection)  # it ended, or is not a worker's
            caller.connection.close()
            callers.forget(caller)
            continue
        if problem:
            return problem
    return ""


def _listener(cluster: Cluster) -> socket.socket:
    """Listens on this process's own port."""
    port = int(cluster.workers[cluster.index].rpartition(":")[2])
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise ConnectionError(
            f"worker {cluster.index} must be able to listen on port {port}, as TF_CONFIG says; "
            f"{error}. Remedy: end the program that has it, which may be another process of index "
            f"{cluster.index}: each needs its own; or name another port in every worker's TF_CONFIG"
        ) from error


def _call(wait: _Wait, own: Mapping[str, str]) -> bool:
    """Another worker: greets worker 0 until it answers."""
    host, _, port = wait.cluster.workers[0].rpartition(":")
    _listener(wait.cluster).close()  # TensorFlow will need it, and would not say what is wrong
    process = f"process {os.getpid()} on {socket.gethostname()}"
    greeting = {"worker": wait.cluster.index, "process": process, **own}
    message = json.dumps(greeting).encode() + b"\n"
    while not wait.stopping():
        if wait.is_over():
            raise ConnectionError(_late(wait, [0]))
        wait.tell([0])
        try:
            with socket.create_connection((host, int(port)), timeout=_TICK_SECS) as connection:
                connection.sendall(message)
                answer = _listen(wait, connection)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not yet worker 0
            time.sleep(_TICK_SECS)
            continue
        if answer is None:  # worker 0 went away, or this one shall stop
            time.sleep(_TICK_SECS)
            continue
        if answer:
            raise ValueError(answer)
        return True
    return False


def _listen(wait: _Wait, connection: socket.socket) -> str | None:
    """Waits for worker 0's answer: what is wrong, empty for nothing; None where none came."""
    heard = b""
    beaten = time.monotonic()
    while not heard.endswith(b"\n"):
        wait.tell([0])
        if wait.stopping() or wait.is_over():
            return None
        if time.monotonic() - beaten >= _BEAT_SECS:
            beaten = time.monotonic()
            connection.sendall(b"\n")
        try:
            part = connection.recv(_LARGEST_ANSWER)
        except TimeoutError:
            continue
        if not part:
            return None
        heard += part
    return str(json.loads(heard)["problem"])


def _late(wait: _Wait, missing: list[int]) -> str:
    return (
        f"all workers of TF_CONFIG must come within {duration(wait.timeout_secs)}; "
        f"{wait.names(missing)} did not. Remedy: start the same command there, each process with "
        "an index of its own, check that the address can be reached, or raise --peer_timeout_secs"
    )
