import json
import socket
import threading
import time

import pytest
from conftest import connected, free_ports

from mapseg.training.rendezvous import Cluster, meet, read_cluster

ALIKE = {"batch_size": "16", "saved": "0"}


def addresses(count):
    return tuple(f"127.0.0.1:{port}" for port in free_ports(count))


def never():
    return False


class Meeting:
    """Workers that meet, each in a thread; `outcomes` has the result or error of each worker."""

    def __init__(self, workers, greetings, timeout_secs=1200.0, stopping=never):
        self.outcomes, self.lines = {}, []
        self.threads = [
            threading.Thread(target=self.run, args=(workers, i, greeting, timeout_secs, stopping))
            for i, greeting in greetings.items()
        ]
        for thread in self.threads:
            thread.start()

    def run(self, workers, index, greeting, timeout_secs, stopping):
        try:
            arguments = (greeting, timeout_secs, self.lines.append, stopping)
            self.outcomes[index] = meet(Cluster(workers, index), *arguments)
        except (ConnectionError, ValueError) as error:
            self.outcomes[index] = error

    def end(self):
        for thread in self.threads:
            thread.join(1500)
            assert not thread.is_alive()
        return self.outcomes


def test_all_start_once_all_are_connected():
    workers = addresses(4)
    outcomes = Meeting(workers, dict.fromkeys(range(4), ALIKE)).end()
    assert outcomes == dict.fromkeys(range(4), True)
    with socket.create_server(("", int(workers[0].rpartition(":")[2]))):
        pass  # the port is free for TensorFlow at once


def test_the_order_of_starting_does_not_matter():
    workers = addresses(2)
    first = Meeting(workers, {1: ALIKE})
    time.sleep(0.5)
    second = Meeting(workers, {0: ALIKE})
    assert {**first.end(), **second.end()} == {0: True, 1: True}


def test_differences_are_reported_on_all_workers():
    outcomes = Meeting(addresses(3), {0: ALIKE, 1: ALIKE, 2: {**ALIKE, "batch_size": "8"}}).end()
    for error in outcomes.values():
        assert isinstance(error, ValueError)
        assert "batch_size=8 on worker 2, batch_size=16 on worker 0" in str(error)


def test_a_missing_worker_is_named_on_all_workers():
    workers = addresses(3)
    outcomes = Meeting(workers, {0: ALIKE, 1: ALIKE}, timeout_secs=1.0).end()
    assert isinstance(outcomes[0], ConnectionError)
    assert f"worker 2 ({workers[2]}) did not" in str(outcomes[0])
    assert "did not" in str(outcomes[1])


def test_without_worker_0_the_other_workers_name_it(monkeypatch):
    monkeypatch.setattr("mapseg.training.rendezvous._REPORT_SECS", 0.0)
    workers = addresses(2)
    meeting = Meeting(workers, {1: ALIKE}, timeout_secs=3.0)
    outcomes = meeting.end()
    assert f"worker 0 ({workers[0]}) did not" in str(outcomes[1])
    assert any(line.startswith(f"waiting for worker 0 ({workers[0]})") for line in meeting.lines)


@pytest.mark.parametrize("index", [0, 1])
def test_a_wait_can_be_stopped(index):
    asked = threading.Event()
    meeting = Meeting(addresses(2), {index: ALIKE}, stopping=asked.is_set)
    time.sleep(0.3)
    asked.set()
    assert meeting.end() == {index: False}


def test_a_worker_that_disconnects_and_reconnects_is_counted_once():
    workers = addresses(3)
    chief = Meeting(workers, {0: ALIKE})
    asked = threading.Event()
    gone = Meeting(workers, {1: ALIKE}, stopping=asked.is_set)
    time.sleep(0.5)
    asked.set()
    assert gone.end() == {1: False}
    late = Meeting(workers, {2: ALIKE})
    time.sleep(0.5)
    assert not late.outcomes  # worker 1 disconnected: worker 2 keeps waiting
    again = Meeting(workers, {1: ALIKE})
    assert {**chief.end(), **late.end(), **again.end()} == {0: True, 1: True, 2: True}


def test_strangers_are_not_counted():
    workers = addresses(2)
    chief = Meeting(workers, {0: ALIKE})
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"worker": 7}\n', b'{"worker": "x"}\n'):
        with connected(workers[0]) as stranger:
            stranger.sendall(noise)
    time.sleep(0.3)
    assert not chief.outcomes
    other = Meeting(workers, {1: ALIKE})
    assert {**chief.end(), **other.end()} == {0: True, 1: True}


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_in_use_is_named(index):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        workers = ["127.0.0.1:1", "127.0.0.1:1"]
        workers[index] = f"127.0.0.1:{port}"
        with pytest.raises(ConnectionError, match=f"worker {index} must .* port {port}"):
            meet(Cluster(tuple(workers), index), {}, 1.0, print, never)


def test_tf_config_is_read(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert read_cluster() is None
    config = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert read_cluster() == Cluster(("a:1", "b:2"), 1)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}',
    ],
)
def test_a_bad_tf_config_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must be like"):
        read_cluster()
