import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, make_tiny_records

from mapseg.data.manifest import read_manifest
from mapseg.runs import checkpoints
from mapseg.runs.folder import open_run
from mapseg.runs.history import read_history
from mapseg.training import loop as train
from mapseg.training.prepare import begin_run


def quiet(_):
    pass


def flags(options):
    return [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items()]


def command(records_dir, run_dir, program="train_main.py", **options):
    options = {**TINY, "records_dir": records_dir, "run_dir": run_dir, **options}
    return [sys.executable, str(ROOT / program), *flags(options)]


def stored_variables(run_dir, step):
    reader = tf.train.load_checkpoint(str(run_dir / f"checkpoints/step-{step:08d}/state"))
    names = reader.get_variable_to_shape_map()
    return {n: reader.get_tensor(n) for n in names if n != "_CHECKPOINTABLE_OBJECT_GRAPH"}


def assert_same_state(one, other, step):
    one, other = stored_variables(one, step), stored_variables(other, step)
    assert one.keys() == other.keys()
    assert len(one) > 10
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_batch_of_one_crop_is_refused_before_anything_is_written(records_dir, tmp_path):
    run = begin_run(tmp_path / "run", read_manifest(records_dir), {**TINY, "batch_size": 1})
    with pytest.raises(ValueError, match="batch_norm=train must see two crops or more"):
        train.train(run, read_manifest(records_dir), quiet)
    assert not checkpoints.saved_steps(run.checkpoints_dir)
    assert not (run.run_dir / "config.json").exists()


@pytest.mark.usefixtures("tiny_encoder")
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(records_dir, tmp_path):
    options = {"steps": 12, "checkpoint_steps": 3, "dropout": 0.3, "optimizer": "adamw"}
    whole, cut, manifest = tmp_path / "whole", tmp_path / "cut", read_manifest(records_dir)

    def take_all_steps(run_dir, progress):
        run = begin_run(run_dir, manifest, {**TINY, **options})
        train.train(run, manifest, progress, evaluating=False)

    take_all_steps(whole, quiet)
    for _ in range(5):
        process = subprocess.Popen(
            command(records_dir, cut, "tests/train_tiny.py", mode="train", **options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended = False
        while not checkpoints.saved_steps(cut / "checkpoints"):
            assert not ended, "the process ended before it was killed"
            ended = process.poll() is not None
            time.sleep(0.01)
        process.kill()
        process.wait()
        if checkpoints.saved_steps(cut / "checkpoints")[-1] < 12:
            break
        shutil.rmtree(cut)  # it finished before it was killed
    else:
        pytest.fail("the process finished before it was killed, five times")
    lines = []
    take_all_steps(cut, lines.append)
    assert any(line.startswith("resuming from step") for line in lines)
    assert_same_state(whole, cut, 12)
    assert [r["step"] for r in read_history(cut / "history.csv")] == [2, 4, 6, 8, 10, 12]


def test_sigterm_saves_and_ends_cleanly(records_dir, tmp_path):
    options = {"steps": 100_000, "mode": "train", "log_steps": 1}
    process = subprocess.Popen(
        command(records_dir, tmp_path / "run", "tests/train_small.py", **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait() == 0
    assert "stopped and saved at step" in rest
    assert checkpoints.saved_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.usefixtures("small")
def test_a_run_finishes_resumes_with_more_steps_and_refuses_other_options(records_dir, tmp_path):
    run_dir = tmp_path / "run"
    options = {**TINY, "eval_steps": 2}
    lines = []

    def go(**more):
        run = begin_run(run_dir, read_manifest(records_dir), {**options, **more})
        train.train(run, read_manifest(records_dir), lines.append)
        return run

    run = go()
    assert run.train.schedule_steps == 4
    assert any("M trained parameters" in line for line in lines)
    history = read_history(run.history_path)
    assert [(r["step"], "mean_iou" in r) for r in history] == [
        (2, False), (2, True), (4, False), (4, True),
    ]  # fmt: skip
    assert (run_dir / "loss.png").stat().st_size > 1000
    assert len(list((run_dir / "evaluation" / "panels").glob("*.jpg"))) == 3
    best = checkpoints.read_best(run.checkpoints_dir)
    assert best.mean_iou == max(r["mean_iou"] for r in history if "mean_iou" in r)
    scores = json.loads((run_dir / "evaluation" / "validation.json").read_text())
    assert scores["iou"].keys() == {"flat--road", "marking--general", "nature--sky"}

    before = (run_dir / "history.csv").read_text()
    lines.clear()
    go()  # finished: nothing is repeated
    assert (run_dir / "history.csv").read_text() == before
    assert lines == [f"nothing to do: {run_dir} is finished at step 4"]

    raised = go(steps=6)
    assert raised.train.schedule_steps == 4
    last = read_history(run.history_path)[-2]
    assert (last["step"], last["learning_rate"]) == (6, 0.0)

    other = make_tiny_records(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="records that it started with"):
        begin_run(run_dir, read_manifest(other), {**options, "steps": 6})
    with pytest.raises(ValueError, match="seed=1 is stored, seed=5 is requested"):
        go(seed=5)
    with pytest.raises(ValueError, match="steps must not be below the saved ones, 6; got 5"):
        go(steps=5)
    assert open_run(run_dir).train.steps == 6


@pytest.mark.parametrize("log_steps", [1, 100])
def test_removing_the_run_folder_during_training_is_one_clear_error(
    records_dir, tmp_path, small, log_steps
):
    """The next write may be the history's or a checkpoint's; neither recreates the folder."""
    options = {**TINY, "steps": 9, "checkpoint_steps": 3, "log_steps": log_steps}
    manifest = read_manifest(records_dir)
    run = begin_run(tmp_path / "run", manifest, options)

    def remove():
        if checkpoints.saved_steps(run.checkpoints_dir):
            shutil.rmtree(run.run_dir)
        return False

    with pytest.raises(FileNotFoundError, match=r"/run: the run folder must stay.*Remedy"):
        train.train(run, manifest, quiet, evaluating=False, stopping=remove)
    assert list(tmp_path.iterdir()) == []
