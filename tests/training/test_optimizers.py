import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import ADDON_OPTIMIZERS, TrainConfig
from mapseg.training import optimizers


def rate(step, **options):
    config = TrainConfig(schedule_steps=100, learning_rate=1.0, **options)
    return float(optimizers.learning_rate(config, tf.constant(step, tf.int64)))


def test_poly_worked_by_hand():
    assert rate(0) == 1
    assert rate(50) == pytest.approx(0.5**0.9)
    assert rate(100) == rate(1000) == 0
    assert rate(50, poly_power=1.0, end_learning_rate=0.2) == pytest.approx(0.6)


def test_cosine_worked_by_hand():
    assert rate(0, schedule="cosine") == 1
    assert rate(25, schedule="cosine") == pytest.approx((1 + np.cos(np.pi / 4)) / 2)
    assert rate(150, schedule="cosine", end_learning_rate=0.1) == pytest.approx(0.1)


def test_warmup_rises_to_the_rate_and_then_the_schedule_starts():
    warm = {"warmup_steps": 10, "poly_power": 1.0}
    assert [rate(s, **warm) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate(10, **warm) == 1
    assert rate(55, **warm) == pytest.approx(0.5)


def model_of_two():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input([3]),
            keras.layers.Dense(2, name="dense"),
            keras.layers.BatchNormalization(name="norm"),
        ]
    )


def test_only_kernels_decay():
    decaying = optimizers.kernels(model_of_two().trainable_variables)
    assert [v.shape for v in decaying] == [(3, 2)]


def test_decay_shrinks_kernels_by_the_rate():
    variables = model_of_two().trainable_variables
    kernel, *others = [np.array(v) for v in variables]
    adamw = TrainConfig(
        optimizer="adamw", weight_decay=0.1, schedule_steps=10, learning_rate=0.5, poly_power=1.0
    )
    optimizers.decay_weights(adamw, tf.constant(5), variables)
    np.testing.assert_allclose(variables[0], kernel * (1 - 0.25 * 0.1))
    for variable, before in zip(variables[1:], others, strict=True):
        np.testing.assert_array_equal(variable, before)


def test_without_weight_decay_nothing_shrinks():
    variables = model_of_two().trainable_variables
    before = [np.array(v) for v in variables]
    optimizers.decay_weights(
        TrainConfig(weight_decay=0, schedule_steps=10), tf.constant(5), variables
    )
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_schedule_needs_a_length():
    with pytest.raises(ValueError, match="schedule_steps must be positive; got 0"):
        optimizers.learning_rate(TrainConfig(), tf.constant(0))


@pytest.mark.addons
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_follow_the_runs_own_step(name):
    step = tf.Variable(0, dtype=tf.int64)
    variable = model_of_two().trainable_variables[0]
    config = TrainConfig(optimizer=name, schedule_steps=10, learning_rate=0.5)
    optimizer = optimizers.build_optimizer(config, step, [variable])
    step.assign(10)  # the end of the schedule: nothing may change
    before = np.array(variable)
    optimizer.apply_gradients([(tf.ones([3, 2]), variable)])
    np.testing.assert_array_equal(variable, before)
    step.assign(0)
    optimizer.apply_gradients([(tf.ones([3, 2]), variable)])
    assert np.all(np.array(variable) < before)


@pytest.mark.parametrize("name", ADDON_OPTIMIZERS)
def test_addon_optimizers_name_the_extra_where_it_is_missing(name):
    try:
        import tensorflow_addons  # noqa: F401
    except ImportError:
        config = TrainConfig(optimizer=name, schedule_steps=1)
        with pytest.raises(ValueError, match=r"mapseg\[addons\]"):
            optimizers.build_optimizer(config, tf.Variable(0, dtype=tf.int64), [])
    else:
        pytest.skip("TensorFlow Addons is installed")


def test_loss_scale_halves_on_overflow_and_doubles_after_many_finite_steps():
    scale = optimizers.LossScale(dynamic=True)
    first = float(scale.scale)
    scale.update(tf.constant(False))
    assert float(scale.scale) == first / 2
    for _ in range(1999):
        scale.update(tf.constant(True))
    assert float(scale.scale) == first / 2
    scale.update(tf.constant(True))
    assert float(scale.scale) == first
    assert int(scale.quiet_steps) == 0


def test_without_float16_the_loss_scale_stays_one():
    scale = optimizers.LossScale(dynamic=False)
    scale.update(tf.constant(False))
    assert float(scale.scale) == 1
