"""Learning rates, optimizers, weight decay and loss scaling."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mapseg.config import ADDON_OPTIMIZERS, TrainConfig

_MOMENTUM = 0.9
# Micikevicius et al. 2018, section 3.2: start high, halve on overflow, double after many steps
# without one.
_FIRST_LOSS_SCALE = 2.0**15
_QUIET_STEPS = 2000


def learning_rate(config: TrainConfig, step: tf.Tensor) -> tf.Tensor:
    """Computes the learning rate of a step.

    `poly` is (1 - t)^power (Chen et al. 2018), `cosine` (1 + cos(pi t)) / 2 (Loshchilov and Hutter
    2017), with t from 0 after the warm-up to 1 at `schedule_steps`. Both decay from
    `learning_rate` to `end_learning_rate`, and stay there after the end of the schedule.

    Args:
      config: `schedule_steps` must be set.
      step: [] integer, 0 for the first.

    Returns:
      [] float32.
    """
    if config.schedule_steps <= 0:
        raise ValueError(f"schedule_steps must be positive; got {config.schedule_steps}")
    step = tf.cast(step, tf.float32)
    warmup = float(config.warmup_steps)
    t = tf.clip_by_value((step - warmup) / max(config.schedule_steps - warmup, 1.0), 0, 1)
    if config.schedule == "poly":
        share = (1 - t) ** config.poly_power
    else:
        share = (1 + tf.cos(t * 3.141592653589793)) / 2
    rate = config.end_learning_rate + (config.learning_rate - config.end_learning_rate) * share
    return tf.where(step < warmup, config.learning_rate * (step + 1) / max(warmup, 1.0), rate)


class StepSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Follows the run's step: the optimizers' own counts differ once a step is skipped."""

    def __init__(self, config: TrainConfig, step: tf.Variable):
        super().__init__()
        self._config = config
        self._step = step

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at the run's step; ignores the optimizer's count."""
        return learning_rate(self._config, self._step)


def build_optimizer(
    config: TrainConfig, step: tf.Variable, variables: Sequence[tf.Variable]
) -> Any:
    """Builds the optimizer with all of its variables.

    It does not apply weight decay: see `updates`.

    Args:
      config: `optimizer` and the learning rate schedule.
      step: [] int64, the run's step.
      variables: the variables to train.

    Raises:
      ValueError: the optimizer needs TensorFlow Addons, which is not installed.
    """
    schedule = StepSchedule(config, step)
    if config.optimizer in ADDON_OPTIMIZERS:
        from mapseg.training import addons

        optimizer = addons.build_addon_optimizer(config.optimizer, schedule)
        addons.create_slots(optimizer, variables)
        return optimizer
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(schedule, momentum=_MOMENTUM)
    else:
        optimizer = keras.optimizers.Adam(schedule)
    optimizer.build(variables)
    return optimizer


def kernels(variables: Sequence[tf.Variable]) -> list[tf.Variable]:
    """Returns the variables with weight decay: kernels, but no scale, shift or bias."""
    return [v for v in variables if "kernel" in v.name.split("/")[-1]]


def decay_weights(config: TrainConfig, step: tf.Tensor, variables: Sequence[tf.Variable]) -> None:
    """Shrinks kernels by `learning_rate * weight_decay`: decoupled (Loshchilov and Hutter 2019)."""
    if not config.weight_decay:
        return
    keep = 1 - learning_rate(config, step) * config.weight_decay
    for variable in kernels(variables):
        variable.assign(variable * tf.cast(keep, variable.dtype))


class LossScale(tf.Module):
    """Dynamic loss scaling for float16; for other types the scale stays 1.

    Keras's LossScaleOptimizer decides on each replica whether to skip a step. Here that is decided
    once for all replicas, before the optimizer runs, so this class only holds the scale.
    """

    def __init__(self, dynamic: bool):
        super().__init__()
        self._dynamic = dynamic
        first = _FIRST_LOSS_SCALE if dynamic else 1.0
        self.scale = tf.Variable(first, trainable=False, name="loss_scale")
        self.quiet_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="quiet_steps")

    def update(self, finite: tf.Tensor) -> None:
        """Halves the scale after an overflow, doubles it after 2000 steps without one.

        Args:
          finite: [] bool, whether loss and gradients of the step were finite.
        """
        if not self._dynamic:
            return
        quiet = tf.where(finite, self.quiet_steps + 1, 0)
        grow = quiet >= _QUIET_STEPS
        grown = tf.where(grow, tf.minimum(self.scale * 2, 2.0**24), self.scale)
        self.scale.assign(tf.where(finite, grown, tf.maximum(self.scale / 2, 1.0)))
        self.quiet_steps.assign(tf.where(grow, tf.zeros_like(quiet), quiet))
