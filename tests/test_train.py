import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, make_tiny_records

from mapseg import checkpoints, train
from mapseg.config import TrainConfig
from mapseg.losses import cross_entropy
from mapseg.model import weight_arrays
from mapseg.optimizers import LossScale, build_optimizer
from mapseg.pipeline import batch_keys, train_batches

ROOT = Path(__file__).parents[1]


def quiet(_):
    pass


def flags(options):
    return [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items()]


def command(records_dir, run_dir, **options):
    options = {**TINY, "records_dir": records_dir, "run_dir": run_dir, **options}
    return [sys.executable, str(ROOT / "train_main.py"), *flags(options)]


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


class SmallState:
    """One convolution and a batch norm, trained like any network."""

    def __init__(self, config):
        keras.utils.set_random_seed(1)
        image = keras.Input((None, None, 3), dtype="uint8")
        x = keras.layers.Rescaling(1 / 255, dtype="float32", name="rescale")(image)
        x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(x)
        x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.Conv2D(3, 1, dtype="float32", name="logits")(x)
        self.model = keras.Model(image, x)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.optimizer = build_optimizer(config, self.step, self.model.trainable_variables)
        self.loss_scale = LossScale(dynamic=config.precision == "mixed_float16")
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer, step=self.step, loss_scale=self.loss_scale
        )

    def arrays(self):
        found = [*self.model.variables]
        wrapped = getattr(self.optimizer, "_optimizer", None)  # Lookahead's
        for optimizer in (self.optimizer, *([wrapped] if wrapped is not None else [])):
            variables = optimizer.variables
            found += variables() if callable(variables) else variables
        return [np.array(v) for v in found]


def small_batch(rows=2):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, [rows, 8, 8, 3], np.uint8)
    return tf.constant(image), tf.constant(image[..., 0] // 86)


def one_device():
    return tf.distribute.get_strategy()


@pytest.mark.addons
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_lowers_the_loss(optimizer):
    config = TrainConfig(optimizer=optimizer, schedule_steps=100, learning_rate=0.05)
    state = SmallState(config)
    step = train.make_step(state, config, one_device())
    found = [float(step(*small_batch())[0]) for _ in range(30)]
    assert found[-1] < 0.7 * found[0]
    assert int(state.step) == 30


def test_the_step_follows_the_gradient_and_the_decay():
    config = TrainConfig(schedule_steps=100, learning_rate=0.1, weight_decay=0.01)
    state = SmallState(config)
    image, label = small_batch()
    kernel = state.model.get_layer("logits").kernel
    before = np.array(kernel)
    with tf.GradientTape() as tape:
        total, pixels = cross_entropy(state.model(image, training=True), label)
        loss = total / pixels
    gradient = np.array(tape.gradient(loss, [kernel])[0])
    state = SmallState(config)  # the forward pass above moved the statistics
    found, finite = train.make_step(state, config, one_device())(image, label)
    assert bool(finite)
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
    expected = before - 0.1 * (gradient + 0.01 * before)
    np.testing.assert_allclose(state.model.get_layer("logits").kernel, expected, atol=1e-6)


@pytest.mark.addons
def test_an_overflow_halves_the_scale_and_changes_no_variable():
    config = TrainConfig(precision="mixed_float16", schedule_steps=100, optimizer="adamw")
    state = SmallState(config)
    state.model.get_layer("norm").gamma.assign([1000.0] * 4)  # so that gradients are large
    step = train.make_step(state, config, one_device())
    assert bool(step(*small_batch())[1])
    before = state.arrays()
    state.loss_scale.scale.assign(3e38)  # the scaled loss is beyond float32
    _, finite = step(*small_batch())
    assert not bool(finite)
    assert float(state.loss_scale.scale) == pytest.approx(1.5e38)
    for value, old in zip(state.arrays(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    state.loss_scale.scale.assign(1024.0)
    assert bool(step(*small_batch())[1])
    assert any(np.any(v != o) for v, o in zip(state.arrays(), before, strict=True))


def test_a_batch_of_void_leaves_the_weights():
    config = TrainConfig(schedule_steps=100, weight_decay=0.0)
    state = SmallState(config)
    before = [np.array(v) for v in state.model.trainable_variables]
    image, label = small_batch()
    loss, finite = train.make_step(state, config, one_device())(
        image, tf.fill(label.shape, tf.constant(255, tf.uint8))
    )
    assert float(loss) == 0
    assert bool(finite)
    for value, old in zip(state.model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_two_devices_take_the_step_of_one():
    """In a process of its own: logical devices are made before TensorFlow starts."""
    code = """
import numpy as np, tensorflow as tf, test_train as t
from mapseg import train
from mapseg.config import TrainConfig
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
config = TrainConfig(schedule_steps=100, batch_norm="frozen", strategy="mirrored", batch_size=4)
image, label = t.small_batch(4)
label = tf.tensor_scatter_nd_update(label, [[0]], [tf.fill([8, 8], tf.constant(255, tf.uint8))])
found = []
for strategy in (tf.distribute.get_strategy(), train.make_strategy(config)):
    with strategy.scope():
        state = t.SmallState(config)
        train.freeze_batch_norm(state.model)
    step = train.make_step(state, config, strategy)
    data = tf.data.Dataset.from_tensors((image, label)).repeat()
    batches = iter(strategy.experimental_distribute_dataset(data))
    losses = [float(step(*next(batches))[0]) for _ in range(5)]
    found.append((losses, [np.array(v) for v in state.model.trainable_variables[:2]]))
    state.loss_scale.scale.assign(float("inf"))
    assert not bool(step(*next(batches))[1])
assert strategy.num_replicas_in_sync == 2
np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
for a, b in zip(found[0][1], found[1][1]):
    np.testing.assert_allclose(a, b, atol=1e-6)
print("equal")
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "equal" in done.stdout, done.stderr[-3000:]


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
    assert [r["step"] for r in checkpoints.read_history(cut / "history.csv")] == [
        2,
        4,
        6,
        8,
        10,
        12,
    ]


def test_sigterm_saves_and_ends_cleanly(records_dir, tmp_path):
    process = subprocess.Popen(
        command(records_dir, tmp_path / "run", steps=100_000, mode="train", log_steps=1),
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


def test_a_run_is_finished_raised_refused_and_told(records_dir, tmp_path):
    run_dir = tmp_path / "run"
    options = {**TINY, "eval_steps": 2, "plot_steps": 2}
    told = []

    def go(**more):
        run = train.begin_run(run_dir, records_dir, {**options, **more})
        train.train(run, records_dir, told.append)
        return run

    run = go()
    assert run.train.schedule_steps == 4
    assert any("2.7" in t or "M trained parameters" in t for t in told)
    history = checkpoints.read_history(run.history_path)
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
    last = checkpoints.read_history(run.history_path)[-2]
    assert (last["step"], last["learning_rate"]) == (6, 0.0)

    other = make_tiny_records(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="records that it began with"):
        train.begin_run(run_dir, other, options)
    with pytest.raises(ValueError, match="seed=1 is stored, seed=5 is asked"):
        go(seed=5)
    with pytest.raises(ValueError, match="steps must not be below the saved ones; got 5"):
        go(steps=5)
    assert checkpoints.open_run(run_dir).train.steps == 6


def test_fine_tuning_keeps_what_fits(records_dir, run_dir, tmp_path):
    told = []
    options = {**TINY, "label_set": "lane_marking", "init_from": str(run_dir)}
    run = train.begin_run(tmp_path / "second", records_dir, options)
    own = weight_arrays(train.build_state(run, told.append, fresh=True).model)
    weights = checkpoints.read_weights(checkpoints.find_checkpoint(run_dir))
    same = [k for k in own if own[k].shape == weights[k].shape]
    assert len(same) == len(own) - 2  # all but the logits' kernel and bias
    for key in same:
        np.testing.assert_array_equal(own[key], weights[key])
    assert sum("new:" in t for t in told) == 2


def test_xla_is_refused_on_several_devices():
    with pytest.raises(ValueError, match="xla=on must be used with one device; got 2"):
        train._use_xla(TrainConfig(xla="on"), 2)


def test_frozen_batch_norm_does_not_move():
    config = TrainConfig(schedule_steps=100, learning_rate=0.1)
    state = SmallState(config)
    train.freeze_batch_norm(state.model)
    assert not any("gamma" in v.name for v in state.model.trainable_variables)
    before = [np.array(v) for v in state.model.get_layer("norm").variables]
    kernel = np.array(state.model.get_layer("conv").kernel)
    optimizer = build_optimizer(config, state.step, state.model.trainable_variables)
    state.optimizer = optimizer
    train.make_step(state, config, one_device())(*small_batch())
    for value, old in zip(state.model.get_layer("norm").variables, before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert np.any(np.array(state.model.get_layer("conv").kernel) != kernel)


def check_replay(path, records_dir, run, step):
    """The batch that was written is the step's, and its keys are those of the samples."""
    with np.load(path) as written:
        image, label = next(train_batches(records_dir, run.train, step).as_numpy_iterator())
        np.testing.assert_array_equal(written["image"], image)
        np.testing.assert_array_equal(written["label"], label)
        assert written["keys"].tolist() == batch_keys(records_dir, run.train, step)
        return written["keys"].tolist()


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_loss_that_is_not_finite_stops_with_a_remedy(records_dir, tmp_path, on_nan):
    # The first step's gradient is finite, and leaves weights that are not: no later step is.
    options = {**TINY, "learning_rate": 1e30, "log_steps": 1, "on_nan": on_nan, "steps": 25}
    run = train.begin_run(tmp_path / "run", records_dir, options)
    step = {"stop": 1, "skip": 20}[on_nan]  # twenty in a row are too many
    expected = rf"of step {step} is not finite.*learning_rate"
    with pytest.raises(FloatingPointError, match=expected) as error:
        train.train(run, records_dir, quiet, evaluating=False)
    path = tmp_path / f"run/not_finite/step-{step:08d}.npz"
    keys = check_replay(path, records_dir, run, step)
    assert f"Its samples: {', '.join(keys)}; its batch: " in str(error.value)
    # The remedy can be followed in the same folder: nothing was saved yet.
    again = train.begin_run(tmp_path / "run", records_dir, TINY)
    assert again.train.learning_rate == 0.01


def test_a_step_that_is_not_finite_may_be_skipped(records_dir, tmp_path, monkeypatch):
    def make_step(*arguments):
        real, steps = make_real(*arguments), iter(range(9))

        def step(*batch):
            loss, finite = real(*batch)
            return loss, finite and next(steps) != 2

        return step

    make_real = train.make_step
    monkeypatch.setattr(train, "make_step", make_step)
    lines = []
    run = train.begin_run(tmp_path / "run", records_dir, {**TINY, "on_nan": "skip"})
    train.train(run, records_dir, lines.append, evaluating=False)
    assert sum(line.startswith("skipped: the loss or a gradient of step 2") for line in lines) == 1
    check_replay(tmp_path / "run/not_finite/step-00000002.npz", records_dir, run, 2)
    assert checkpoints.read_history(run.history_path)[-1]["skipped_steps"] == 1


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
    run_dir = tmp_path / "run"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.train(train.begin_run(run_dir, records_dir, {**TINY, **options}), records_dir, quiet)
    assert not (run_dir / "config.json").exists()
    run = train.begin_run(run_dir, records_dir, TINY)  # and the folder can still be used
    assert dataclasses.is_dataclass(run)


def test_a_strangers_folder_is_left_alone(records_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        train.begin_run(tmp_path, records_dir, TINY)
