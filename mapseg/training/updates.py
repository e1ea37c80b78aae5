"""The optimizer update on flat vectors: gradient clipping, weight decay, and SGD or Adam.

A network has hundreds of variables, and Keras updates each with separate operations: thousands of
nodes, which TensorFlow traces and optimizes before the first step. Here the variables are joined
into two vectors, one with weight decay and one without. Variables and checkpoints keep Keras's
format, and the arithmetic is Keras's, operation by operation, bit for bit.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from mapseg.config import ADDON_OPTIMIZERS, TrainConfig
from mapseg.training.optimizers import decay_weights, kernels, learning_rate

# Keras's names for the slots that an optimizer keeps for each variable of the network.
_SLOTS = {"sgd": ("momentums",), "adamw": ("_momentums", "_velocities")}


def join_flat(values: Sequence[Any]) -> tf.Tensor:
    """Joins tensors or variables of any shapes into one vector; a single one keeps its shape."""
    if len(values) == 1:
        return tf.convert_to_tensor(values[0])
    flat = tf.constant([-1])  # one graph node for all
    return tf.concat([x if len(x.shape) == 1 else tf.reshape(x, flat) for x in values], 0)


def split_flat(variables: Sequence[Any], joined: tf.Tensor) -> list[tf.Tensor]:
    """Splits a vector from `join_flat` into tensors of the variables' shapes."""
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
    """Assigns values that `join_flat` joined to variables."""
    for variable, part in zip(variables, split_flat(variables, joined), strict=True):
        variable.assign(part, read_value=False)


def tensorflow_variables(variables: Sequence[Any]) -> list[tf.Variable]:
    """Returns the TensorFlow variables inside those of Keras 3: faster to read and assign."""
    return [v if isinstance(v, tf.Variable) else v.value for v in variables]


class _Group(NamedTuple):
    """Variables that are updated together, and the optimizer's slots for them."""

    variables: list[tf.Variable]
    slots: list[list[tf.Variable]]
    decays: bool


class KerasUpdate:
    """Updates a network exactly as its Keras optimizer, SGD or Adam, would."""

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
        with_decay = [i for i, v in enumerate(variables) if id(v) in decaying]
        without_decay = [i for i, v in enumerate(variables) if id(v) not in decaying]
        self._indices = [x for x in (with_decay, without_decay) if x]  # of each group
        if not joined:
            self._indices = [[i] for i in range(len(variables))]
        slots = [getattr(optimizer, name) for name in _SLOTS[config.optimizer]]
        self._groups = []
        for indices in self._indices:
            parts = [tensorflow_variables([x[i] for i in indices]) for x in (variables, *slots)]
            self._groups.append(_Group(parts[0], parts[1:], id(variables[indices[0]]) in decaying))

    def join_gradients(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Joins the gradients of all variables into the groups that `run` expects."""
        return [join_flat([gradients[i] for i in indices]) for indices in self._indices]

    def run(
        self,
        strategy: tf.distribute.Strategy,
        gradients: Sequence[tf.Tensor],
        factor: tf.Tensor,
        finite: tf.Tensor,
    ) -> None:
        """Updates all replicas and counts the step; changes nothing if the step is not finite.

        Args:
          strategy: the strategy; call this in cross-replica context.
          gradients: from `join_gradients` on each replica, of the global batch.
          factor: [] float32, multiplies the gradients.
          finite: [] bool, whether the step is finite.
        """
        strategy.run(self._apply, (gradients, factor, finite))
        iterations = self._optimizer.iterations
        iterations.assign_add(tf.cast(finite, iterations.dtype))

    def _apply(self, gradients: Sequence[tf.Tensor], factor: tf.Tensor, finite: tf.Tensor) -> None:
        if self._config.clip_norm:
            gradients = [g * factor for g in gradients]
            factor = self._clip_factor(gradients)
        rate = learning_rate(self._config, self._step)
        rule = self._sgd if self._config.optimizer == "sgd" else self._adam
        for group, gradient in zip(self._groups, gradients, strict=True):
            lists = [group.variables, *group.slots]
            old = [join_flat(variables) for variables in lists]
            new = rule(rate, self._config.weight_decay * group.decays, gradient, factor, *old)
            for variables, before, after in zip(lists, old, new, strict=True):
                assign(variables, tf.where(finite, after, before))

    def _clip_factor(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the factor by which clipping multiplies the gradients.

        As in Keras, the norm is summed variable by variable, in the order of the model.
        """
        parts: dict[int, tf.Tensor] = {}
        for indices, group, gradient in zip(self._indices, self._groups, gradients, strict=True):
            parts |= zip(indices, split_flat(group.variables, gradient), strict=True)
        norm = tf.linalg.global_norm([parts[i] for i in sorted(parts)])
        (factor,), _ = tf.clip_by_global_norm([tf.ones([])], self._config.clip_norm, norm)
        return factor

    # TensorFlow multiplies scalars together before it multiplies a vector by them. Where Keras's
    # operations allow that, in SGD without decay, this code does the same.
    def _sgd(
        self,
        rate: tf.Tensor,
        decay: float,
        gradient: tf.Tensor,
        factor: tf.Tensor,
        value: tf.Tensor,
        speed: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Applies SGD with L2 regularization: adds `weight_decay * kernel` to the gradient."""
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
        """Applies Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
        adam, gradient = self._optimizer, gradient * factor
        if decay:
            value *= 1 - rate * decay
        count = tf.cast(adam.iterations + 1, tf.float32)
        mean_power, square_power = adam.beta_1**count, adam.beta_2**count
        alpha = rate * tf.sqrt(1 - square_power) / (1 - mean_power)
        mean += (gradient - mean) * (1 - adam.beta_1)
        square += (tf.square(gradient) - square) * (1 - adam.beta_2)
        return value - mean * alpha / (tf.sqrt(square) + adam.epsilon), mean, square


class AddonUpdate:
    """Updates a network with an optimizer of TensorFlow Addons, which does its own arithmetic."""

    def __init__(
        self, config: TrainConfig, optimizer: Any, step: tf.Variable, variables: Sequence[Any]
    ):
        """See `KerasUpdate`."""
        self._config, self._optimizer, self._step = config, optimizer, step
        self._variables = variables

    def join_gradients(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """See `KerasUpdate.join_gradients`."""
        return [join_flat(gradients)]

    def run(
        self,
        strategy: tf.distribute.Strategy,
        gradients: Sequence[tf.Tensor],
        factor: tf.Tensor,
        finite: tf.Tensor,
    ) -> None:
        """See `KerasUpdate.run`."""
        replicas = strategy.num_replicas_in_sync

        def apply(joined: tf.Tensor, factor: tf.Tensor) -> None:
            gradients = [part * factor for part in split_flat(self._variables, joined)]
            if self._config.clip_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, self._config.clip_norm)
            if replicas > 1:
                gradients = [g / replicas for g in gradients]  # the optimizer sums over replicas
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
    """Makes the update for an optimizer and the variables that it was built for.

    Args:
      config: `optimizer`, `clip_norm`, `weight_decay` and the learning rate schedule.
      optimizer: from `build_optimizer`.
      step: [] int64, the run's step.
      variables: the variables that the optimizer was built for.
      joined: update the variables as joined vectors. XLA fuses the separate operations itself, and
        takes longer to compile joined ones.
    """
    if config.optimizer in ADDON_OPTIMIZERS:
        return AddonUpdate(config, optimizer, step, variables)
    return KerasUpdate(config, optimizer, step, variables, joined=joined)
