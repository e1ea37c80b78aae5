"""The fused batch norm trains like Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.model import layers
from mapseg.model.layers import BatchNormalization


def train(layer, x, steps=3):
    """Takes steps; returns outputs, gradients and all variables."""
    layer.build(x.shape)
    layer.gamma.assign(np.linspace(0.5, 2, x.shape[-1]))
    layer.beta.assign(np.linspace(-1, 1, x.shape[-1]))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            objective = tf.reduce_sum(tf.cast(y, tf.float32) ** 3)
        return y, *tape.gradient(objective, [x, *layer.trainable_variables])

    for number in range(steps):
        results = step(x + number)
    return [*results, *layer.variables]


@pytest.mark.addons
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (4, 1, 1, 3), (1, 1, 1, 3)])
def test_batch_norm_equals_that_of_keras(shape):
    x = tf.constant(np.random.default_rng(0).normal(3, 2, shape), tf.float32)
    ours, theirs = (
        train(kind(momentum=0.9, epsilon=1e-3), x)
        for kind in (BatchNormalization, keras.layers.BatchNormalization)
    )
    for value, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=2e-4)


def test_the_moving_variance_has_no_bessels_correction():
    x = np.random.default_rng(0).normal(3, 2, [2, 1, 1, 4]).astype(np.float32)
    layer = BatchNormalization(momentum=0.0)
    layer(tf.constant(x), training=True)
    np.testing.assert_allclose(layer.moving_mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, x.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_batch_norm_in_half_precision_keeps_float32_statistics(dtype):
    x = tf.constant(np.random.default_rng(0).normal(3, 2, [2, 9, 9, 4]), tf.float32)
    ours, theirs = (
        train(kind(momentum=0.9, dtype=dtype), tf.cast(x, dtype[6:]))
        for kind in (BatchNormalization, keras.layers.BatchNormalization)
    )
    assert ours[0].dtype == theirs[0].dtype == dtype[6:]
    for value, expected in zip(ours[-2:], theirs[-2:], strict=True):
        assert value.dtype == "float32"
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        tf.cast(ours[0], tf.float32), tf.cast(theirs[0], tf.float32), atol=0.02
    )


def test_frozen_batch_norm_changes_nothing():
    layer = BatchNormalization()
    layer.build([None, None, None, 2])
    layer.trainable = False
    before = [np.array(v) for v in layer.variables]
    x = tf.constant(np.random.default_rng(0).normal(3, 2, [1, 3, 3, 2]), tf.float32)
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False))
    for value, old in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(value, old)


def kinds_of_operations(layer, x):
    graph = tf.function(lambda x: layer(x, training=False)).get_concrete_function(x).graph
    return [operation.type for operation in graph.get_operations()]


@pytest.mark.parametrize("training", [None, False, 0])
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_a_gpu_normalizes_predictions_in_half_precision_in_one_operation(
    dtype, training, monkeypatch
):
    monkeypatch.setattr(layers, "gpus", lambda: ["a GPU"])
    rng = np.random.default_rng(0)
    statistics = [rng.uniform(0.5, 2, 4), *rng.normal(0, 1, [2, 4]), rng.uniform(0.5, 2, 4)]
    ours, theirs = (
        kind(epsilon=1e-3, dtype=dtype)
        for kind in (BatchNormalization, keras.layers.BatchNormalization)
    )
    x = tf.constant(rng.normal(3, 2, [2, 9, 9, 4]), ours.compute_dtype)
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.set_weights(statistics)
    kinds = kinds_of_operations(ours, x)
    assert kinds.count("FusedBatchNormV3") == 1
    assert not {"Cast", "Mul", "AddV2"} & {*kinds}
    value, expected = (tf.cast(layer(x, training=training), tf.float32) for layer in (ours, theirs))
    # Both round once, to 8 or 11 significant bits.
    rounding = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}[dtype]
    np.testing.assert_allclose(value, expected, rtol=2 * rounding, atol=1e-5)


@pytest.mark.parametrize(("dtype", "devices"), [("mixed_bfloat16", []), ("float32", ["a GPU"])])
def test_other_predictions_are_those_of_keras(dtype, devices, monkeypatch):
    monkeypatch.setattr(layers, "gpus", lambda: devices)
    layer = BatchNormalization(dtype=dtype)
    x = tf.zeros([2, 9, 9, 4], layer.compute_dtype)
    layer.build(x.shape)
    assert "FusedBatchNormV3" not in kinds_of_operations(layer, x)
