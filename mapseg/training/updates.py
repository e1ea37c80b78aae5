"""The update of a step on flat vectors: clipping, weight decay, and SGD's or Adam's arithmetic.

A network has hundreds of variables, and Keras updates each by operations of its own: thousands of
nodes, which TensorFlow traces and optimizes before the first step. Here they are joined to two
vectors, of the variables that decay and of the others. The variables stay as Keras made them, and
so do checkpoints; the arithmetic is Keras's, operation by operation, to the same bits.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from mapseg.config import ADDON_OPTIMIZERS, TrainConfig
from mapseg.training.optimizers import decay_weights, kernels, learning_rate

# What Keras calls the variables that an optimizer keeps for each of the network's.
_SLOTS = {"sgd": ("momentums",), "adamw": ("_momentums", "_velocities")}


def join(values: Sequence[Any]) -> tf.Tensor:
    """Joins tensors or variables of any shapes to one vector; a single one keeps its shape."""
    if len(values) == 1:
        return tf.convert_to_tensor(values[0])
    flat = tf.constant([-1])  # one node for all
    return tf.concat([x if len(x.shape) == 1 else tf.reshape(x, flat) for x in values], 0)


def cut(variables: Sequence[Any], joined: tf.Tensor) -> list[tf.Tensor]:
    """Cuts what `join` made into tensors of the shapes of variables."""
    if len(variables) == 1:
        return [joined]
    parts = tf.split(joined, [math.prod(v.shape) for v in variables])
    shapes = [tuple(v.shape) for v in variables]
    nodes = {x: tf.constant(x, tf.int32) for x in dict.fromkeys(shapes) if len(x) != 1}
    return [
        tf.reshape(part, nodes[shape]) if shape in nodes else part
        for part, shape in zip(parts, shapes, strict=True)
    ]


def assign(variables: Sequence[Any], joined: tf.Tensor) -> None:
    """Assigns to variables what `join` makes of their new values."""
    for variable, part in zip(variables, cut(variables, joined), strict=True):
        variable.assign(part, read_value=False)


def tensorflow_variables(variables: Sequence[Any]) -> list[tf.Variable]:
    """Returns the variables inside Keras 3's, which take longer to read and to assign."""
    return [v if isinstance(v, tf.Variable) else v.value for v in variables]


class _Group(NamedTuple):
    """Variables that are updated as one, and what the optimizer keeps for them."""

    variables: list[tf.Variable]
    slots: list[list[tf.Variable]]
    decays: bool


class KerasUpdate:
    """Updates a network as the Keras optimizer would that it is given, SGD or Adam."""

    def __init__(
        self,
        config: TrainConfig,
        optimizer: Any,
        step: tf.Variable,
        variables: Sequence[Any],
        *,
        joined: bool,
    ):
        """Binds to the run's step and to the variables that the optimizer was built for."""
        self._config, self._optimizer, self._step = config, optimizer, step
        decaying = {id(v) for v in kernels(variables)}
        places = [i for i, v in enumerate(variables) if id(v) in decaying]
        others = [i for i, v in enumerate(variables) if id(v) not in decaying]
        self._places = [x for x in (places, others) if x]
        if not joined:
            self._places = [[i] for i in range(len(variables))]
        slots = [getattr(optimizer, name) for name in _SLOTS[config.optimizer]]
        self._groups = []
        for own in self._places:
            parts = [tensorflow_variables([x[i] for i in own]) for x in (variables, *slots)]
            self._groups.append(_Group(parts[0], parts[1:], id(variables[own[0]]) in decaying))

    def join(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Joins the gradients of all variables as `run` takes them."""
        return [join([gradients[i] for i in own]) for own in self._places]

    def run(
        self,
        strategy: tf.distribute.Strategy,
        gradients: Sequence[tf.Tensor],
        factor: tf.Tensor,
        finite: tf.Tensor,
    ) -> None:
        """Updates all replicas and counts the step; where it is not finite, nothing changes.

        Args:
          strategy: of the replicas; call this outside of them.
          gradients: from `join` on each replica, of the batch of all.
          factor: [] float32, what the gradients are to be multiplied by.
          finite: [] bool.
        """
        strategy.run(self._apply, (gradients, factor, finite))
        iterations = self._optimizer.iterations
        iterations.assign_add(tf.cast(finite, iterations.dtype))

    def _apply(self, gradients: Sequence[tf.Tensor], factor: tf.Tensor, finite: tf.Tensor) -> None:
        if self._config.clip_norm:
            gradients = [g * factor for g in gradients]
            factor = self._shrinking(gradients)
        rate = learning_rate(self._config, self._step)
        rule = self._sgd if self._config.optimizer == "sgd" else self._adam
        for group, gradient in zip(self._groups, gradients, strict=True):
            own = [group.variables, *group.slots]
            old = [join(variables) for variables in own]
            new = rule(rate, self._config.weight_decay * group.decays, gradient, factor, *old)
            for variables, before, after in zip(own, old, new, strict=True):
                assign(variables, tf.where(finite, after, before))

    def _shrinking(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns what clipping multiplies gradients by.

        The norm is added up variable by variable, in the order of the model's.
        """
        parts: dict[int, tf.Tensor] = {}
        for own, group, gradient in zip(self._places, self._groups, gradients, strict=True):
            parts |= zip(own, cut(group.variables, gradient), strict=True)
        norm = tf.linalg.global_norm([parts[i] for i in sorted(parts)])
        (factor,), _ = tf.clip_by_global_norm([tf.ones([])], self._config.clip_norm, norm)
        return factor

    # TensorFlow multiplies numbers with each other before it multiplies a vector by them. Where
    # Keras's operations let it, in SGD without decay, this is done here.
    def _sgd(
        self,
        rate: tf.Tensor,
        decay: float,
        gradient: tf.Tensor,
        factor: tf.Tensor,
        value: tf.Tensor,
        speed: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Decays through the gradient: `weight_decay * kernel` is added to it."""
        change = gradient * (factor * rate)
        if decay:
            change = (gradient * factor + decay * value) * rate
        speed = speed * self._optimizer.momentum - change
        return value + speed, speed

    def _adam(
        self,
        rate: tf.Tensor,
        decay: float,
        gradient: tf.Tensor,
        factor: tf.Tensor,
        value: tf.Tensor,
        mean: tf.Tensor,
        square: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Decays beside the gradient: decoupled (Loshchilov and Hutter 2019)."""
        own, gradient = self._optimizer, gradient * factor
        if decay:
            value *= 1 - rate * decay
        count = tf.cast(own.iterations + 1, tf.float32)
        mean_power, square_power = own.beta_1**count, own.beta_2**count
        alpha = rate * tf.sqrt(1 - square_power) / (1 - mean_power)
        mean += (gradient - mean) * (1 - own.beta_1)
        square += (tf.square(gradient) - square) * (1 - own.beta_2)
        return value - mean * alpha / (tf.sqrt(square) + own.epsilon), mean, square


class AddonUpdate:
    """Updates a network by an optimizer of TensorFlow Addons, with its own arithmetic."""

    def __init__(
        self, config: TrainConfig, optimizer: Any, step: tf.Variable, variables: Sequence[Any]
    ):
        """Binds as `KerasUpdate` does."""
        self._config, self._optimizer, self._step = config, optimizer, step
        self._variables = variables

    def join(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Does what `KerasUpdate.join` does."""
        return [join(gradients)]

    def run(
        self,
        strategy: tf.distribute.Strategy,
        gradients: Sequence[tf.Tensor],
        factor: tf.Tensor,
        finite: tf.Tensor,
    ) -> None:
        """Does what `KerasUpdate.run` does."""
        replicas = strategy.num_replicas_in_sync

        def apply(joined: tf.Tensor, factor: tf.Tensor) -> None:
            gradients = [part * factor for part in cut(self._variables, joined)]
            if self._config.clip_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, self._config.clip_norm)
            if replicas > 1:
                gradients = [g / replicas for g in gradients]  # the optimizer adds them up
            decay_weights(self._config, self._step, self._variables)
            self._optimizer.apply_gradients(zip(gradients, self._variables, strict=True))

        tf.cond(finite, lambda: strategy.run(apply, (*gradients, factor)), lambda: None)


def make_update(
    config: TrainConfig,
    optimizer: Any,
    step: tf.Variable,
    variables: Sequence[Any],
    *,
    joined: bool,
) -> KerasUpdate | AddonUpdate:
    """Makes the update for an optimizer that was built for some variables of a network.

    Args:
      config: how it updates.
      optimizer: from `build_optimizer`.
      step: [] int64, the run's step.
      variables: what the optimizer was built for.
      joined: update the variables as vectors. XLA makes one operation of many by itself, and
        compiles longer where they are joined.
    """
    if config.optimizer in ADDON_OPTIMIZERS:
        return AddonUpdate(config, optimizer, step, variables)
    return KerasUpdate(config, optimizer, step, variables, joined=joined)
