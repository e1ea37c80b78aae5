import dataclasses
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, make_tiny_records

from mapseg.data.batches import CropStream
from mapseg.data.manifest import read_manifest
from mapseg.model.weights import read_weights, weight_arrays
from mapseg.runs import checkpoints
from mapseg.runs.folder import open_run
from mapseg.runs.history import read_history
from mapseg.training import loop as train
from mapseg.training.devices import Workers
from mapseg.training.prepare import begin_run
from mapseg.training.state import build_state
from mapseg.training.summary import describe


def quiet(_):
    pass


def flags(options):
    return [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items()]


def command(records_dir, run_dir, program="train_main.py", **options):
    options = {**TINY, "records_dir": records_dir, "run_dir": run_dir, **options}
    return [sys.executable, str(ROOT / program), *flags(options)]


def call(records_dir, run_dir, **options):
    done = subprocess.run(
        command(records_dir, run_dir, **options), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def stored_variables(run_dir, step):
    reader = tf.train.load_checkpoint(str(run_dir / f"checkpoints/step-{step:08d}/state"))
    names = reader.get_variable_to_shape_map()
    return {n: reader.get_tensor(n) for n in names if n != "_CHECKPOINTABLE_OBJECT_GRAPH"}


def assert_same_state(one, other, step):
    one, other = stored_variables(one, step), stored_variables(other, step)
    assert one.keys() == other.keys()
    assert len(one) > 400
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_warmup_as_long_as_the_schedule_is_told(records_dir, tmp_path):
    def told(**options):
        run = begin_run(tmp_path, read_manifest(records_dir), {**TINY, **options})
        state = SimpleNamespace(model=SimpleNamespace(trainable_variables=[]))
        lines = describe(run, state, 2, Workers(tf.distribute.get_strategy()))
        return [line for line in lines if "warmup_steps" in line]

    assert told(steps=20, warmup_steps=19) == []
    (line,) = told(steps=20, warmup_steps=20)
    assert "WARNING: warmup_steps=20 of a schedule of 20 steps" in line
    assert told(steps=20, schedule_steps=10, warmup_steps=10)


def test_a_batch_of_one_crop_is_refused_before_anything_is_written(records_dir, tmp_path):
    run = begin_run(tmp_path / "run", read_manifest(records_dir), {**TINY, "batch_size": 1})
    with pytest.raises(ValueError, match="batch_norm=train must see two crops or more"):
        train.train(run, read_manifest(records_dir), quiet)
    assert not checkpoints.saved_steps(run.checkpoints_dir)
    assert not (run.run_dir / "config.json").exists()


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(records_dir, tmp_path):
    options = {"steps": 12, "checkpoint_steps": 3, "mode": "train", "dropout": 0.3}
    options["optimizer"] = "adamw"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = call(records_dir, whole, **options)
    assert done.returncode == 0, done.stderr

    process = subprocess.Popen(
        command(records_dir, cut, **options), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while not checkpoints.saved_steps(cut / "checkpoints"):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkpoints.saved_steps(cut / "checkpoints")[-1] < 12
    done = call(records_dir, cut, **options)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    assert_same_state(whole, cut, 12)
    assert [r["step"] for r in read_history(cut / "history.csv")] == [
        2,
        4,
        6,
        8,
        10,
        12,
    ]


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
def test_a_run_is_finished_raised_refused_and_told(records_dir, tmp_path):
    run_dir = tmp_path / "run"
    options = {**TINY, "eval_steps": 2, "plot_steps": 2}
    told = []

    def go(**more):
        run = begin_run(run_dir, read_manifest(records_dir), {**options, **more})
        train.train(run, read_manifest(records_dir), told.append)
        return run

    run = go()
    assert run.train.schedule_steps == 4
    assert any("M trained parameters" in t for t in told)
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
    told.clear()
    go()  # finished: nothing is done again
    assert (run_dir / "history.csv").read_text() == before
    assert told == [f"nothing to do: {run_dir} is finished at step 4"]

    raised = go(steps=6)
    assert raised.train.schedule_steps == 4
    last = read_history(run.history_path)[-2]
    assert (last["step"], last["learning_rate"]) == (6, 0.0)

    other = make_tiny_records(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="records that it began with"):
        begin_run(run_dir, read_manifest(other), {**options, "steps": 6})
    with pytest.raises(ValueError, match="seed=1 is stored, seed=5 is asked"):
        go(seed=5)
    with pytest.raises(ValueError, match="steps must not be below the saved ones, 6; got 5"):
        go(steps=5)
    assert open_run(run_dir).train.steps == 6


def test_fine_tuning_keeps_what_fits(records_dir, run_dir, tmp_path):
    told = []
    options = {**TINY, "label_set": "lane_marking", "init_from": str(run_dir)}
    run = begin_run(tmp_path / "second", read_manifest(records_dir), options)
    own = weight_arrays(build_state(run, told.append, fresh=True).model)
    weights = read_weights(checkpoints.find_checkpoint(run_dir))
    same = [k for k in own if own[k].shape == weights[k].shape]
    assert len(same) == len(own) - 2  # all but the logits' kernel and bias
    for key in same:
        np.testing.assert_array_equal(own[key], weights[key])
    assert sum("new:" in t for t in told) == 2


def check_replay(path, records_dir, run, step):
    """The batch that was written is the step's, and its keys are those of the samples."""
    stream = CropStream(read_manifest(records_dir), run.train, run.label_set)
    with np.load(path) as written:
        image, label = next(stream.batches(step).as_numpy_iterator())
        np.testing.assert_array_equal(written["image"], image)
        np.testing.assert_array_equal(written["label"], label)
        assert written["keys"].tolist() == stream.keys(step)
        return written["keys"].tolist()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_loss_that_is_not_finite_stops_with_a_remedy(records_dir, tmp_path, on_nan):
    # The first step's gradient is finite, and leaves weights that are not: no later step is.
    options = {**TINY, "learning_rate": 1e30, "log_steps": 1, "on_nan": on_nan, "steps": 25}
    run = begin_run(tmp_path / "run", read_manifest(records_dir), options)
    step = {"stop": 1, "skip": 20}[on_nan]  # twenty in a row are too many
    expected = rf"of step {step} is not finite.*learning_rate"
    with pytest.raises(FloatingPointError, match=expected) as error:
        train.train(run, read_manifest(records_dir), quiet, evaluating=False)
    path = tmp_path / f"run/not_finite/step-{step:08d}.npz"
    keys = check_replay(path, records_dir, run, step)
    assert f"Its samples: {', '.join(keys)}; its batch: " in str(error.value)
    # The remedy can be followed in the same folder: nothing was saved yet.
    again = begin_run(tmp_path / "run", read_manifest(records_dir), TINY)
    assert again.train.learning_rate == 0.01


@pytest.fixture
def step_2_is_not_finite(monkeypatch):
    def make_step(*arguments):
        real = make_real(*arguments)

        def step(image, label):
            number = tf.identity(arguments[0].step)
            loss, finite = real(image, label)
            return loss, tf.logical_and(finite, number != 2)

        return step

    make_real = train.make_step
    monkeypatch.setattr(train, "make_step", make_step)


@pytest.mark.usefixtures("small", "step_2_is_not_finite")
def test_a_step_that_is_not_finite_is_told_before_it_is_saved_over(records_dir, tmp_path):
    options = {**TINY, "log_steps": 4, "checkpoint_steps": 3}
    run = begin_run(tmp_path / "run", read_manifest(records_dir), options)
    with pytest.raises(FloatingPointError, match="of step 2 is not finite"):
        train.train(run, read_manifest(records_dir), quiet, evaluating=False)
    assert not checkpoints.saved_steps(run.checkpoints_dir)


@pytest.mark.usefixtures("small", "step_2_is_not_finite")
def test_a_step_that_is_not_finite_may_be_skipped(records_dir, tmp_path):
    lines = []
    run = begin_run(tmp_path / "run", read_manifest(records_dir), {**TINY, "on_nan": "skip"})
    train.train(run, read_manifest(records_dir), lines.append, evaluating=False)
    assert sum(line.startswith("skipped: the loss or a gradient of step 2") for line in lines) == 1
    check_replay(tmp_path / "run/not_finite/step-00000002.npz", records_dir, run, 2)
    assert read_history(run.history_path)[-1]["skipped_steps"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turbo": True}, "turbo"),
        ({"train_split": "holidays"}, "holidays"),
        ({"label_set": "all_66"}, "all_66"),
        ({"init_from": "nowhere"}, "nowhere"),
        ({"encoder_weights": "nowhere.h5"}, "nowhere.h5"),
    ],
)
def test_what_cannot_begin_leaves_no_run_behind(records_dir, tmp_path, options, message):
    run_dir, manifest = tmp_path / "run", read_manifest(records_dir)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run = begin_run(run_dir, manifest, {**TINY, **options})
        train.train(run, manifest, quiet)
    assert not (run_dir / "config.json").exists()
    run = begin_run(run_dir, manifest, TINY)  # and the folder can still be used
    assert dataclasses.is_dataclass(run)


def test_a_strangers_folder_is_left_alone(records_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        begin_run(tmp_path, read_manifest(records_dir), TINY)
