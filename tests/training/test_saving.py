"""When a run is saved, and what several devices save together."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, TINY
from test_loop import flags

from mapseg.data.manifest import read_manifest
from mapseg.model.weights import read_weights
from mapseg.runs import checkpoints
from mapseg.training import saving
from mapseg.training.loop import train
from mapseg.training.prepare import begin_run


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("checkpoint_secs", "steps"), [(250, [3, 6, 8]), (0, [8])])
def test_a_run_is_saved_when_checkpoint_secs_have_gone_by(
    records_dir, tmp_path, monkeypatch, checkpoint_secs, steps
):
    """Uses a clock on which each step takes 100 seconds."""
    secs = 0.0

    def progress(line):
        nonlocal secs
        secs += 100 * line.startswith("step ")

    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: secs))
    options = {**TINY, "steps": 8, "log_steps": 1, "checkpoint_steps": 0, "keep_checkpoints": 9}
    manifest = read_manifest(records_dir)
    run = begin_run(tmp_path, manifest, {**options, "checkpoint_secs": checkpoint_secs})
    train(run, manifest, progress, evaluating=False)
    assert checkpoints.saved_steps(run.checkpoints_dir) == steps


def test_mirrored_devices_save_the_mean_of_their_statistics(records_dir, tmp_path):
    run_dir = tmp_path / "run"
    options = {**TINY, "strategy": "mirrored", "batch_size": 6, "checkpoint_steps": 2}
    options |= {"records_dir": records_dir, "run_dir": run_dir}
    command = [sys.executable, str(ROOT / "tests/train_mirrored.py"), str(tmp_path / "notes.npz")]
    done = subprocess.run(
        [*command, *flags(options)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "notes.npz") as notes:
        before, after = notes["before"], notes["after"]
    assert before.shape == after.shape == (2, 2, 3, 4)
    assert (before.std(axis=2) > 0).all()  # each device saw different crops
    mean = before.mean(axis=2)
    for device in range(3):
        np.testing.assert_allclose(after[:, :, device], mean, rtol=1e-5)
    for step, statistics in zip((2, 4), mean, strict=True):
        weights = read_weights(checkpoints.find_checkpoint(run_dir, str(step)))
        for name, expected in zip(("moving_mean", "moving_variance"), statistics, strict=True):
            np.testing.assert_allclose(weights[f"norm/{name}"], expected, rtol=1e-5, err_msg=name)
    scores = json.loads((run_dir / "evaluation/validation.json").read_text())
    assert (scores["step"], scores["samples"]) == (4, 3)
