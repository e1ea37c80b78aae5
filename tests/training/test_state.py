import os

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY
from take_steps import SmallState, small_batch

from mapseg.config import TrainConfig
from mapseg.data.manifest import read_manifest
from mapseg.model.weights import read_weights, weight_arrays
from mapseg.runs import checkpoints
from mapseg.training.optimizers import build_optimizer
from mapseg.training.prepare import begin_run
from mapseg.training.state import DropoutSeed, build_state, freeze_batch_norm, use_xla
from mapseg.training.step import make_step


def one_device():
    return tf.distribute.get_strategy()


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


def test_dropout_differs_by_step_and_part():
    step = tf.Variable(0, dtype=tf.int64)
    seed, values = DropoutSeed(1, step), set()
    for number in range(3):
        step.assign(number)
        for part in range(3):
            seed.part = part
            values.add(tuple(seed().numpy()))
    assert len(values) == 9


def test_the_compiled_step_is_the_same_for_every_seed():
    seeds = [DropoutSeed(number, tf.Variable(3, dtype=tf.int64)) for number in (1, 2)]
    graphs = [tf.function(seed.__call__).get_concrete_function().graph for seed in seeds]
    first, second = (
        [(op.type, str(op.node_def.attr.get("value"))) for op in graph.get_operations()]
        for graph in graphs
    )
    assert first == second
    assert tuple(seeds[0]().numpy()) != tuple(seeds[1]().numpy())


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_step_compiled_for_a_gpu_can_read_all_variables(records_dir, tmp_path, precision):
    """TensorFlow keeps int32 variables in the CPU's memory."""
    options = {**TINY, "precision": precision, "dropout": 0.1}
    run = begin_run(tmp_path / "run", read_manifest(records_dir), options)
    state = build_state(run, lambda _: None, fresh=True)
    specs = [tf.TensorSpec([2, 65, 65, *rest], tf.uint8) for rest in ([3], [])]
    step = make_step(state, run.train, one_device()).get_concrete_function(*specs)
    assert any("seed" in v.name for v in step.variables)
    assert [v.name for v in step.variables if v.dtype == tf.int32] == []


def test_xla_keeps_convolutions_apart_from_their_biases(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    disabled = '--xla_disable_hlo_passes="cudnn-fused-convolution-rewriter"'
    for xla, flags in (("auto", ""), ("on", disabled)):
        config = TrainConfig(schedule_steps=100, xla=xla)
        make_step(SmallState(config), config, one_device())
        assert os.environ["XLA_FLAGS"] == flags


def test_xla_is_refused_where_it_cannot_compile():
    class Strategy:
        num_replicas_in_sync = 2

        class extended:  # noqa: N801
            worker_devices = ("a", "b")

    assert not use_xla(TrainConfig(), Strategy)
    with pytest.raises(ValueError, match="xla=on must be used with one device in each process"):
        use_xla(TrainConfig(xla="on"), Strategy)
    Strategy.extended.worker_devices = ("a",)
    assert use_xla(TrainConfig(xla="on"), Strategy)
    with pytest.raises(ValueError, match="xla=on must be used with sync_batch_norm off"):
        use_xla(TrainConfig(xla="on", sync_batch_norm=True), Strategy)


def test_fine_tuning_keeps_matching_weights(records_dir, run_dir, tmp_path):
    lines = []
    options = {**TINY, "label_set": "lane_marking", "init_from": str(run_dir)}
    run = begin_run(tmp_path / "second", read_manifest(records_dir), options)
    own = weight_arrays(build_state(run, lines.append, fresh=True).model)
    weights = read_weights(checkpoints.find_checkpoint(run_dir))
    same = [k for k in own if own[k].shape == weights[k].shape]
    assert len(same) == len(own) - 2  # all but the logits' kernel and bias
    for key in same:
        np.testing.assert_array_equal(own[key], weights[key])
    assert sum("new:" in line for line in lines) == 2
