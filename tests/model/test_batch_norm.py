"""The fused batch norm trains like Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

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
