"""Two processes train as one, in the whole program but with a small network.

test_step.py tests the step alone.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, free_ports, tf_config
from test_loop import flags, stored_variables

from mapseg.data.manifest import read_manifest
from mapseg.model.weights import read_weights
from mapseg.runs import checkpoints
from mapseg.training.loop import train
from mapseg.training.prepare import begin_run

PROGRAM = str(ROOT / "tests/train_small.py")
OPTIONS = {
    **TINY,
    "steps": 6,
    "batch_size": 4,
    "checkpoint_steps": 1,
    "keep_checkpoints": 9,
    "log_steps": 1,
    "sync_batch_norm": True,
    "eval_steps": 2,
    "peer_timeout_secs": 1200,
}


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


class Pair:
    """Two workers of a run; their output goes to files."""

    def __init__(self, records_dir, run_dir, **options):
        options = {**OPTIONS, "records_dir": records_dir, "run_dir": run_dir, **options}
        ports = free_ports(2)
        self.logs = [run_dir.with_name(f"{run_dir.name}-{i}.txt") for i in range(2)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, PROGRAM, *flags(options)],
                env=environment(**tf_config(ports, i)),
                stdout=self.logs[i].open("w"),
                stderr=subprocess.STDOUT,
            )
            for i in range(2)
        ]

    def wait(self):
        codes = [process.wait(timeout=1200) for process in self.processes]
        return codes, [log.read_text() for log in self.logs]

    def wait_for(self, text):
        ended = False
        while text not in (log := self.logs[0].read_text()):
            assert not ended, log
            ended = self.processes[0].poll() is not None
            time.sleep(0.02)


@pytest.mark.usefixtures("small")
def test_two_workers_train_as_one_and_resume_after_one_is_lost(records_dir, tmp_path):
    one, two, cut = (tmp_path / name for name in ("one", "two", "cut"))
    manifest = read_manifest(records_dir)
    entropy = {"loss": "ce"}  # Lovasz-softmax ranks the pixels of each worker on its own
    train(begin_run(one, manifest, {**OPTIONS, **entropy}), manifest, print)
    codes, texts = Pair(records_dir, two, **entropy).wait()
    assert codes == [0, 0], texts
    assert "step" not in texts[1]  # only worker 0 reports
    expected, actual = (read_weights(checkpoints.find_checkpoint(run, "6")) for run in (one, two))
    assert len(actual) == 8
    for name, value in actual.items():  # moving statistics included
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)
    scores = [json.loads((run / "evaluation/validation.json").read_text()) for run in (one, two)]
    assert sum(map(sum, scores[0]["confusion"])) == sum(map(sum, scores[1]["confusion"]))

    # One of the two is killed: the other reports it and ends.
    for _ in range(5):
        pair = Pair(records_dir, cut, **entropy)
        pair.wait_for("\nstep 3/6")
        pair.processes[1].kill()
        codes, texts = pair.wait()
        if checkpoints.saved_steps(cut / "checkpoints")[-1] < 5:
            break
        shutil.rmtree(cut)  # they finished before one was killed
    assert codes == [1, -9]
    errors = [line for line in texts[0].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "has ended or is unreachable" in errors[0]
    assert re.search(r"resume from step [2-4]\b", errors[0])
    assert "Traceback" not in texts[0]

    # They resume; SIGTERM to one stops both, after saving.
    pair = Pair(records_dir, cut, **entropy)
    pair.wait_for("\nstep 5/6")
    pair.processes[1].send_signal(signal.SIGTERM)
    codes, texts = pair.wait()
    assert codes == [0, 0], texts
    assert "resuming from step" in texts[0]
    step = checkpoints.saved_steps(cut / "checkpoints")[-1]
    assert step in (5, 6)
    expected, actual = stored_variables(two, step), stored_variables(cut, step)
    assert expected.keys() == actual.keys()
    for name, value in actual.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_two_workers_end_early_at_the_same_step(records_dir, tmp_path):
    unchanging = {"learning_rate": 1e-30, "batch_norm": "frozen", "sync_batch_norm": False}
    options = {**unchanging, "steps": 99, "early_stopping": 1}
    codes, texts = Pair(records_dir, tmp_path / "run", **options).wait()
    assert codes == [0, 0], texts
    assert "finished early at step 4: 1 evaluation" in texts[0]
    assert checkpoints.saved_steps(tmp_path / "run" / "checkpoints")[-1] == 4
    # Only the first knows the history; both must find the run finished.
    codes, texts = Pair(records_dir, tmp_path / "run", **options).wait()
    assert codes == [0, 0], texts
    assert all("ended early at step 4" in text for text in texts)


def test_a_waiting_worker_can_be_stopped_and_times_out(records_dir, tmp_path):
    def start(**more):
        options = {**OPTIONS, "records_dir": records_dir, "run_dir": tmp_path / "run", **more}
        return subprocess.Popen(
            [sys.executable, PROGRAM, *flags(options)],
            env=environment(**tf_config(free_ports(2), 0)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    waiting, hasty = start(), start(run_dir=tmp_path / "other", peer_timeout_secs=1)
    line = waiting.stdout.readline()
    assert line.startswith("waiting for worker 1 (127.0.0.1:")
    waiting.send_signal(signal.SIGTERM)
    out, _ = waiting.communicate(timeout=1200)
    assert waiting.returncode == 0
    assert "stopped while other workers were missing" in out
    _, errors = hasty.communicate(timeout=1200)
    assert hasty.returncode == 1
    assert "worker 1 (127.0.0.1:" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "other" / "config.json").exists()
