"""The training step, on one device and on many."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, free_ports, tf_config
from take_steps import CASES, SmallState, small_batch, take

from mapseg.config import TrainConfig
from mapseg.training.devices import Workers
from mapseg.training.losses import make_loss
from mapseg.training.step import make_step, make_steps


def one_device():
    return tf.distribute.get_strategy()


@pytest.mark.addons
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_lowers_the_loss(optimizer):
    config = TrainConfig(optimizer=optimizer, schedule_steps=100, learning_rate=0.05)
    state = SmallState(config)
    step = make_step(state, config, one_device())
    losses = [float(step(*small_batch())[0]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 30


def test_the_step_follows_the_gradient_and_the_decay():
    config = TrainConfig(schedule_steps=100, learning_rate=0.1, weight_decay=0.01)
    state = SmallState(config)
    image, label = small_batch()
    kernel = state.model.get_layer("logits-semantic").kernel
    before = np.array(kernel)
    with tf.GradientTape() as tape:
        total, pixels = make_loss(config)(state.model(image, training=True), label, 1)
        loss = total / pixels
    gradients = tape.gradient(loss, [kernel, *state.model.trainable_variables])
    gradient, *each = map(np.array, gradients)
    state = SmallState(config)  # the forward pass above updated the statistics
    step_loss, finite, norm = make_step(state, config, one_device())(image, label)
    assert bool(finite)
    assert float(step_loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(norm) == pytest.approx(np.sqrt(sum(np.sum(g**2) for g in each)), rel=1e-5)
    expected = before - 0.1 * (gradient + 0.01 * before)
    np.testing.assert_allclose(state.model.get_layer("logits-semantic").kernel, expected, atol=1e-6)


@pytest.mark.addons
def test_an_overflow_halves_the_scale_and_changes_no_variable():
    config = TrainConfig(precision="mixed_float16", schedule_steps=100, optimizer="adamw")
    state = SmallState(config)
    state.model.get_layer("norm").gamma.assign([1000.0] * 4)  # so that gradients are large
    step = make_step(state, config, one_device())
    assert bool(step(*small_batch())[1])
    before = state.arrays()
    state.loss_scale.scale.assign(3e38)  # the scaled loss overflows float32
    _, finite, _ = step(*small_batch())
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
    loss, finite, norm = make_step(state, config, one_device())(
        image, tf.fill(label.shape, tf.constant(255, tf.uint8))
    )
    assert float(loss) == float(norm) == 0
    assert bool(finite)
    for value, old in zip(state.model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.fixture(scope="module")
def taken_by_one():
    """Returns each case's results on one device: losses and variables."""
    return {name: take(Workers(one_device()), name, case) for name, case in CASES.items()}


@pytest.mark.addons
def test_many_devices_train_like_one(taken_by_one, tmp_path):
    """Compares one device, two devices of one process, and two processes: see take_steps.py."""
    ports, started = free_ports(2), {}
    for name, variables in {
        "mirrored": {},
        "multi_worker_0": tf_config(ports, 0),
        "multi_worker_1": tf_config(ports, 1),
    }.items():
        kind = name.rstrip("_01")
        command = [sys.executable, str(ROOT / "tests/take_steps.py"), kind]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        errors = (tmp_path / f"{name}.txt").open("w")
        command.append(f"{tmp_path}/{name}.npz")
        started[name] = subprocess.Popen(command, env=env, stdout=errors, stderr=errors)
    for name, process in started.items():
        assert process.wait(timeout=1200) == 0, (tmp_path / f"{name}.txt").read_text()[-3000:]
    results = {name: dict(np.load(tmp_path / f"{name}.npz")) for name in started}
    expected = {
        f"{name}/{i}": np.array(value)
        for name, values in taken_by_one.items()
        for i, value in enumerate(values)
    }
    for devices, arrays in results.items():
        missing = {n for n in expected if devices == "mirrored" and n.startswith("compiled/")}
        assert expected.keys() - arrays.keys() == missing  # XLA needs one device per process
        for name in arrays.keys() - {"own_norm/0"}:  # normalizing per device changes the loss
            where = f"{devices} {name}"
            if name.startswith("sync_norm_in_parts/"):
                expected[name] = results["mirrored"][name]
            np.testing.assert_allclose(arrays[name], expected[name], atol=1e-6, err_msg=where)


def test_accumulation_and_xla_do_not_change_the_result(taken_by_one):
    for case in ("in_parts", "compiled"):
        for value, right in zip(taken_by_one[case], taken_by_one["frozen_norm"], strict=True):
            np.testing.assert_allclose(value, right, atol=1e-6, err_msg=case)


def test_clipping_bounds_the_gradient_of_the_global_batch():
    config = replace(CASES["clipped_in_parts"], weight_decay=0.0)
    state = SmallState(config)
    before = [np.array(v) for v in state.model.trainable_variables]
    _, _, norm = make_step(state, config, one_device())(*small_batch(4))
    moved = [np.array(v) - b for v, b in zip(state.model.trainable_variables, before, strict=True)]
    clipped = np.sqrt(sum(np.sum(m**2) for m in moved))
    assert clipped == pytest.approx(config.learning_rate * config.clip_norm, rel=1e-4)
    assert float(norm) > 2 * config.clip_norm  # of the gradient before clipping


def test_steps_do_not_depend_on_the_steps_per_call():
    config = TrainConfig(schedule_steps=100, learning_rate=0.1)
    results = []
    for calls in ([5], [1, 3, 1]):
        state = SmallState(config)
        steps = make_steps(make_step(state, config, one_device()))
        batches = iter(tf.data.Dataset.from_tensors(small_batch()).repeat())
        taken = [steps(batches, tf.constant(count)) for count in calls]
        losses, _, norms = (np.concatenate(parts) for parts in zip(*taken, strict=True))
        results.append([losses, norms, *state.arrays()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
