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
from mapseg.training.devices import Workers, check_batch_norm
from mapseg.training.losses import make_loss
from mapseg.training.optimizers import build_optimizer
from mapseg.training.state import DropoutSeed, freeze_batch_norm, use_xla
from mapseg.training.step import make_step, make_steps


def one_device():
    return tf.distribute.get_strategy()


@pytest.mark.addons
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_lowers_the_loss(optimizer):
    config = TrainConfig(optimizer=optimizer, schedule_steps=100, learning_rate=0.05)
    state = SmallState(config)
    step = make_step(state, config, one_device())
    found = [float(step(*small_batch())[0]) for _ in range(30)]
    assert found[-1] < 0.7 * found[0]
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
    gradient = np.array(tape.gradient(loss, [kernel])[0])
    state = SmallState(config)  # the forward pass above moved the statistics
    found, finite = make_step(state, config, one_device())(image, label)
    assert bool(finite)
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
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
    loss, finite = make_step(state, config, one_device())(
        image, tf.fill(label.shape, tf.constant(255, tf.uint8))
    )
    assert float(loss) == 0
    assert bool(finite)
    for value, old in zip(state.model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_frozen_batch_norm_does_not_move():
    config = TrainConfig(schedule_steps=100, learning_rate=0.1)
    state = SmallState(config)
    freeze_batch_norm(state.model)
    assert not any("gamma" in v.name for v in state.model.trainable_variables)
    before = [np.array(v) for v in state.model.get_layer("norm").variables]
    kernel = np.array(state.model.get_layer("conv").kernel)
    optimizer = build_optimizer(config, state.step, state.model.trainable_variables)
    state.optimizer = optimizer
    make_step(state, config, one_device())(*small_batch())
    for value, old in zip(state.model.get_layer("norm").variables, before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert np.any(np.array(state.model.get_layer("conv").kernel) != kernel)


@pytest.mark.addons
def test_many_devices_take_the_steps_of_one(tmp_path):
    """One process, two devices of one process, and two processes: see take_steps.py."""
    ports, started = free_ports(2), {}
    for name, more in {
        "one_device": {},
        "mirrored": {},
        "multi_worker_0": tf_config(ports, 0),
        "multi_worker_1": tf_config(ports, 1),
    }.items():
        kind = name.rstrip("_01")
        command = [sys.executable, str(ROOT / "tests/take_steps.py"), kind]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
        errors = (tmp_path / f"{name}.txt").open("w")
        command.append(f"{tmp_path}/{name}.npz")
        started[name] = subprocess.Popen(command, env=env, stdout=errors, stderr=errors)
    for name, process in started.items():
        assert process.wait(timeout=300) == 0, (tmp_path / f"{name}.txt").read_text()[-3000:]
    taken = {name: dict(np.load(tmp_path / f"{name}.npz")) for name in started}
    expected = taken.pop("one_device")
    assert {name.partition("/")[0] for name in expected} == CASES.keys()
    for devices, found in taken.items():
        lacking = {n for n in expected if devices == "mirrored" and n.startswith("compiled/")}
        assert expected.keys() - found.keys() == lacking  # XLA takes one device of a process
        for name in found.keys() - {"own_norm/0"}:  # a part normalized alone has another loss
            where = f"{devices} {name}"
            if name.startswith("sync_norm_in_parts/"):
                expected[name] = taken["mirrored"][name]
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6, err_msg=where)


def test_parts_and_the_compiler_change_nothing():
    expected = take(Workers(one_device()), "frozen_norm", CASES["frozen_norm"])
    for case in ("in_parts", "compiled"):
        found = take(Workers(one_device()), case, CASES[case])
        for value, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, right, atol=1e-6, err_msg=case)


def test_clipping_bounds_the_gradient_of_the_whole_batch():
    config = replace(CASES["clipped_in_parts"], weight_decay=0.0)
    state = SmallState(config)
    before = [np.array(v) for v in state.model.trainable_variables]
    make_step(state, config, one_device())(*small_batch(4))
    moved = [np.array(v) - b for v, b in zip(state.model.trainable_variables, before, strict=True)]
    norm = np.sqrt(sum(np.sum(m**2) for m in moved))
    assert norm == pytest.approx(config.learning_rate * config.clip_norm, rel=1e-4)


def test_steps_of_one_call_are_those_of_many():
    config = TrainConfig(schedule_steps=100, learning_rate=0.1)
    found = []
    for calls in ([5], [1, 3, 1]):
        state = SmallState(config)
        steps = make_steps(make_step(state, config, one_device()))
        batches = iter(tf.data.Dataset.from_tensors(small_batch()).repeat())
        losses = [steps(batches, tf.constant(count))[0].numpy() for count in calls]
        found.append([np.concatenate(losses), *state.arrays()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropout_differs_by_step_and_part():
    step = tf.Variable(0, dtype=tf.int64)
    seed, seen = DropoutSeed(1, step), set()
    for number in range(3):
        step.assign(number)
        for part in range(3):
            seed.part = part
            seen.add(tuple(seed().numpy()))
    assert len(seen) == 9


def test_the_compiled_step_is_the_same_for_every_seed():
    seeds = [DropoutSeed(number, tf.Variable(3, dtype=tf.int64)) for number in (1, 2)]
    graphs = [tf.function(seed.__call__).get_concrete_function().graph for seed in seeds]
    first, second = (
        [(op.type, str(op.node_def.attr.get("value"))) for op in graph.get_operations()]
        for graph in graphs
    )
    assert first == second
    assert tuple(seeds[0]().numpy()) != tuple(seeds[1]().numpy())


def test_xla_is_refused_where_it_cannot_be():
    class Strategy:
        num_replicas_in_sync = 2

        class extended:  # noqa: N801
            worker_devices = ("a", "b")

    with pytest.raises(ValueError, match="xla=on must be used with one device in each process"):
        use_xla(TrainConfig(xla="on"), Strategy)
    Strategy.extended.worker_devices = ("a",)
    assert use_xla(TrainConfig(xla="on"), Strategy)
    with pytest.raises(ValueError, match="xla=on must be used with sync_batch_norm off"):
        use_xla(TrainConfig(xla="on", sync_batch_norm=True), Strategy)


@pytest.mark.parametrize(
    ("options", "replicas"),
    [({"batch_size": 1}, 1), ({"batch_size": 4, "accumulate_steps": 4}, 1), ({"batch_size": 2}, 2)],
    ids=str,
)
def test_a_batch_norm_that_would_see_one_crop_is_refused(options, replicas):
    """Image pooling leaves it one value: zero in training, anything in prediction."""

    def check(**more):
        check_batch_norm(TrainConfig(**{**options, **more}), replicas)

    with pytest.raises(ValueError, match=r"two crops or more.*got one: batch_size=.*Remedy: --b"):
        check()
    check(batch_norm="frozen")
    check(batch_size=2 * options["batch_size"])
    if replicas > 1:
        check(sync_batch_norm=True)  # they look at the crops of all devices
