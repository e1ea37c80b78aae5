"""Several workers: each keeps its own errors; TensorFlow's error identifies a lost worker."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, connected, free_ports, tf_config

from mapseg.config import PredictConfig
from mapseg.data.manifest import read_manifest
from mapseg.runs.checkpoints import find_checkpoint
from mapseg.training import loop, rendezvous
from mapseg.training.prepare import begin_run
from mapseg.training.rendezvous import Cluster, meet

ALIKE = {"batch_size": "16"}
PLACE = "[[{{node x}}]] /job:worker/replica:0/task:1/device:GPU:0"
ABORTED = (
    "Graph execution error:\n\nDetected at node CollectiveReduceV2 defined at (most recent call "
    'last):\n  File "a.py", line 1, in f\n\nCollective ops is aborted by: Error reported from '
    "/job:worker/task:0: /job:worker/task:2 stopped sending heartbeats.\n"
)


@pytest.fixture
def failing(records_dir, tmp_path, monkeypatch):
    """Trains as worker 0 of three, which fails with an error."""

    def train(error):
        def fail(*_):
            raise error

        workers = SimpleNamespace(count=3, index=0, replicas=1, is_first=True)
        monkeypatch.setattr(loop, "join", lambda *_: workers)
        monkeypatch.setattr(loop, "_train", fail)
        manifest = read_manifest(records_dir)
        loop.train(begin_run(tmp_path / "run", manifest, TINY), manifest, print)

    return train


@pytest.mark.parametrize(
    "kind",
    [
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.UnknownError,
    ],
)
def test_a_lost_worker_is_named_with_the_message_of_tensorflow(failing, kind):
    error = kind(None, None, ABORTED)
    with pytest.raises(ConnectionError, match=r"^worker 2 has ended or is unreachable") as caught:
        failing(error)
    assert caught.value.__cause__ is error
    assert "they start from scratch: nothing was saved" in str(caught.value)
    quoted = f"TensorFlow's {kind.__name__}: Collective ops is aborted by: Error reported from "
    assert quoted in str(caught.value)
    assert "a.py" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, f"OOM when allocating; {PLACE}"),
        tf.errors.InvalidArgumentError(None, None, f"a shard is broken; Collective; {PLACE}"),
        tf.errors.DataLossError(None, None, f"corrupted record; {PLACE}"),
        tf.errors.InternalError(None, None, f"cuDNN launch failure; {PLACE}"),
        tf.errors.UnknownError(None, None, f"KeyError: 'x'; {PLACE}"),
        tf.errors.FailedPreconditionError(None, None, f"uninitialized; {PLACE}"),
        ValueError("a bug"),
    ],
)
def test_every_other_error_is_raised_unchanged(failing, error):
    with pytest.raises(type(error)) as caught:
        failing(error)
    assert caught.value is error


def test_a_broken_shard_is_named_by_the_worker_that_read_it(records_dir, tmp_path):
    records = shutil.copytree(records_dir, tmp_path / "records")
    for shard in records.glob("training-*.tfrecord"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 255
        shard.write_bytes(data)
    run = {"records_dir": records, "run_dir": tmp_path / "run", "mode": "train"}
    options = {**TINY, "steps": 1000, "batch_size": 4, "sync_batch_norm": True, **run}
    arguments = [f"--{k}={str(v).lower() if v is True else v}" for k, v in options.items()]
    ports = free_ports(2)
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/train_small.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **tf_config(ports, i)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    texts = [process.communicate(timeout=1200)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    errors = [text.splitlines()[-1] for text in texts]
    assert any(line.startswith(f"error: {records}/training-") for line in errors), errors
    for line in errors:
        assert line.startswith(f"error: {records}/training-") or "TensorFlow's Unavailable" in line
        assert "This is a bug" not in line


# --- two processes with one index


class Processes:
    """Processes that meet, each in a thread; `outcomes` has the result or error of each."""

    def __init__(self):
        self.outcomes, self.threads = {}, []

    def start(self, name, cluster, greeting=ALIKE, timeout_secs=1200.0, stopping=lambda: False):
        def run():
            try:
                self.outcomes[name] = meet(cluster, greeting, timeout_secs, print, stopping)
            except (ConnectionError, ValueError) as error:
                self.outcomes[name] = error

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def end(self):
        for thread in self.threads:
            thread.join(1500)
            assert not thread.is_alive()
        return self.outcomes


def addresses(count):
    return tuple(f"127.0.0.1:{port}" for port in free_ports(count))


@pytest.mark.parametrize("count", [2, 3])
def test_two_processes_with_one_index_are_both_refused_at_once(count):
    """Also when they start together and no worker is missing (count 2)."""
    workers, processes, started = addresses(count), Processes(), time.monotonic()
    for name, index in (("chief", 0), ("one", 1), ("other", 1)):
        processes.start(name, Cluster(workers, index))
        time.sleep(0.1)
    outcomes = processes.end()
    assert time.monotonic() - started < 600  # not at the end of the wait
    here = f"process {os.getpid()} on {socket.gethostname()}"
    for name in ("chief", "one", "other"):
        assert isinstance(outcomes[name], ValueError), outcomes
        assert f"index 1 of TF_CONFIG must be one process; got two, {here} and {here}" in str(
            outcomes[name]
        )


def test_a_silently_lost_process_may_be_replaced(monkeypatch):
    """Its connection stays open, as after a power cut, but it sends no heartbeat."""
    workers, processes = addresses(3), Processes()
    processes.start("chief", Cluster(workers, 0))
    with connected(workers[0]) as lost:
        lost.sendall(b'{"worker": 1, "process": "lost", "batch_size": "16"}\n')
        time.sleep(0.3)
        processes.start(1, Cluster(workers, 1))
        time.sleep(3 * rendezvous._BEAT_SECS)
        processes.start(2, Cluster(workers, 2))
        assert processes.end() == {"chief": True, 1: True, 2: True}


def test_a_duplicate_that_stops_leaves_the_index_to_the_first():
    workers, processes = addresses(3), Processes()
    processes.start("chief", Cluster(workers, 0))
    processes.start(1, Cluster(workers, 1))
    time.sleep(0.3)
    with connected(workers[0]) as second:
        second.sendall(b'{"worker": 1, "process": "second", "batch_size": "8"}\n')
    time.sleep(0.1)
    processes.start(2, Cluster(workers, 2))
    assert processes.end() == {"chief": True, 1: True, 2: True}


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_in_use_hints_at_a_process_with_the_same_index(index):
    with socket.create_server(("", 0)) as server:
        workers = ["127.0.0.1:1", "127.0.0.1:1"]
        workers[index] = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"may be another process with index {index}"):
            meet(Cluster(tuple(workers), index), {}, 1.0, print, lambda: False)


# --- all workers must have the same label set


def test_workers_compare_initial_weights_by_content(records_dir, run_dir, tmp_path):
    manifest = read_manifest(records_dir)
    start = tmp_path / "start.npz"

    def greeting():
        run = begin_run(tmp_path / "run", manifest, {**TINY, "init_from": str(start)})
        return loop._greeting(run, manifest, PredictConfig(), True)

    shutil.copy(find_checkpoint(run_dir) / "weights.npz", start)
    one = greeting()
    np.savez(start, other=np.zeros(3))
    other = greeting()
    assert {name for name in one if one[name] != other[name]} == {"initial weights"}


def test_workers_compare_label_sets_by_content(records_dir, tmp_path):
    manifest = read_manifest(records_dir)
    paths = [tmp_path / name / "set.json" for name in ("one", "other", "third")]
    for path, others in zip(paths, ("a", "a", "b"), strict=True):
        path.parent.mkdir()
        groups = [
            {"name": "a", "color": [1, 2, 3], "sources": ["flat--*"]},
            {"name": "b", "color": [4, 5, 6], "sources": ["nature--*"]},
        ]
        path.write_text(json.dumps({"classes": groups, "others": others}))

    def greeting(path):
        run = begin_run(tmp_path / "run", manifest, {**TINY, "label_set": str(path)})
        return loop._greeting(run, manifest, PredictConfig(), True)

    one, other, third = map(greeting, paths)
    assert one == other
    differing = {name for name in one if one[name] != third[name]}
    assert differing == {"label_set"}
    assert one["label_set"].startswith("2 classes, digest ")
    # The same path with different content on another machine.
    run = begin_run(tmp_path / "run", manifest, {**TINY, "label_set": str(paths[0])})
    edited = dataclasses.replace(
        run, label_set=dataclasses.replace(run.label_set, source_to_train=(255,) * 256)
    )
    assert loop._greeting(edited, manifest, PredictConfig(), True) != one


def test_workers_compare_the_records_that_they_evaluate_on(records_dir, tmp_path):
    """A worker's copy may be of the same training split, but of another validation split."""
    manifest = read_manifest(records_dir)
    other = dataclasses.replace(
        manifest, splits={**manifest.splits, "validation": manifest.splits["training"]}
    )
    run = begin_run(tmp_path / "run", manifest, TINY)
    one, two = (loop._greeting(run, each, PredictConfig(), True) for each in (manifest, other))
    assert [name for name in one if one[name] != two[name]] == ["records to evaluate on"]
    one, two = (loop._greeting(run, each, PredictConfig(), False) for each in (manifest, other))
    assert one == two
