"""The update equals that of Keras's optimizers bit for bit; non-finite steps change nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.training.optimizers import build_optimizer, decay_weights, kernels, learning_rate
from mapseg.training.updates import assign, join_flat, make_update, split_flat

OPTIONS = {"schedule_steps": 10, "learning_rate": 0.1, "weight_decay": 0.05, "warmup_steps": 2}


class Small:
    """Variables of several shapes, the first of them not a kernel, and their optimizer."""

    def __init__(self, config):
        keras.utils.set_random_seed(1)
        layers = [
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.Conv2D(2, 1, name="logits"),
        ]
        self.model = keras.Sequential([keras.Input([8, 8, 3]), *layers])
        self.step = tf.Variable(0, dtype=tf.int64)
        self.trained = self.model.trainable_variables
        self.optimizer = build_optimizer(config, self.step, self.trained)

    def arrays(self):
        """Returns network and optimizer values, without the learning rate that Keras 2 stores."""
        variables = self.optimizer.variables
        variables = variables() if callable(variables) else variables
        slots = [v for v in variables if "learning_rate" not in v.name]
        return [np.array(v) for v in (*self.model.variables, *slots)]


def by_keras(small, config, gradients, factor):
    gradients = [g * factor for g in gradients]
    if config.clip_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm)
    if config.optimizer == "sgd":
        decaying = {id(v) for v in kernels(small.trained)}
        gradients = [
            g + config.weight_decay * tf.convert_to_tensor(v) if id(v) in decaying else g
            for g, v in zip(gradients, small.trained, strict=True)
        ]
    else:
        decay_weights(config, small.step, small.trained)
    small.optimizer.apply_gradients(zip(gradients, small.trained, strict=True))


@pytest.mark.addons
@pytest.mark.parametrize("joined", [True, False])
# SGD with clipping is left out: only in a graph does TensorFlow multiply the two factors first.
@pytest.mark.parametrize(("optimizer", "clip_norm"), [("sgd", 0), ("adamw", 0), ("adamw", 0.5)])
def test_the_update_equals_keras_bit_for_bit(optimizer, clip_norm, joined):
    config = TrainConfig(optimizer=optimizer, clip_norm=clip_norm, **OPTIONS)
    reference, small = Small(config), Small(config)
    update = make_update(config, small.optimizer, small.step, small.trained, joined=joined)
    strategy, rng = tf.distribute.get_strategy(), np.random.default_rng(0)
    for number in range(6):
        gradients = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in small.trained]
        factor = tf.constant(0.0 if number == 3 else 0.5)  # 0 for a batch of void
        by_keras(reference, config, gradients, factor)
        update.run(strategy, update.join_gradients(gradients), factor, tf.constant(True))
        for value, expected in zip(small.arrays(), reference.arrays(), strict=True):
            np.testing.assert_array_equal(value, expected)
        for network in (reference, small):
            network.step.assign_add(1)
    assert int(small.optimizer.iterations) == 6


@pytest.mark.addons
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_nothing(optimizer, joined):
    config = TrainConfig(optimizer=optimizer, clip_norm=0.5, **OPTIONS)
    small = Small(config)
    update = make_update(config, small.optimizer, small.step, small.trained, joined=joined)
    strategy, ones = tf.distribute.get_strategy(), [tf.ones(v.shape) for v in small.trained]
    update.run(strategy, update.join_gradients(ones), tf.constant(1.0), tf.constant(True))
    before = small.arrays()
    for bad in (np.nan, np.inf):
        broken = [*ones[:-1], tf.fill(ones[-1].shape, bad)]
        update.run(strategy, update.join_gradients(broken), tf.constant(1.0), tf.constant(False))
        for value, old in zip(small.arrays(), before, strict=True):
            np.testing.assert_array_equal(value, old)


def test_sgd_and_adamw_shrink_kernels_by_the_rate():
    for optimizer in ("sgd", "adamw"):
        config = TrainConfig(optimizer=optimizer, **{**OPTIONS, "warmup_steps": 0})
        small = Small(config)
        before = {id(v): np.array(v) for v in small.trained}
        update = make_update(config, small.optimizer, small.step, small.trained, joined=True)
        zeros = update.join_gradients([tf.zeros(v.shape) for v in small.trained])
        update.run(tf.distribute.get_strategy(), zeros, tf.constant(1.0), tf.constant(True))
        decaying = {id(v) for v in kernels(small.trained)}
        rate = float(learning_rate(config, tf.constant(0)))
        assert len(decaying) == 2
        for v in small.trained:
            kept = 1 - rate * config.weight_decay if id(v) in decaying else 1
            np.testing.assert_allclose(v, kept * before[id(v)], rtol=1e-6, err_msg=optimizer)


def test_joined_values_can_be_split_and_assigned():
    values = [np.arange(6.0).reshape(1, 2, 3), np.float64(7), np.arange(2.0), np.ones([2, 1])]
    variables = [tf.Variable(np.zeros_like(v), dtype=tf.float32) for v in values]
    joined = join_flat([tf.constant(v, tf.float32) for v in values])
    assert joined.shape == [11]
    for part, value in zip(split_flat(variables, joined), values, strict=True):
        np.testing.assert_array_equal(part, value)
    assign(variables, joined)
    for variable, value in zip(variables, values, strict=True):
        np.testing.assert_array_equal(variable, value)
