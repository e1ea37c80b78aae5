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

_SLOTS = {"sgd": ("momentums",), "adamw": ("_momentums", "_velocities")}


def flatten(values: Sequence[Any]) -> tf.Tensor:
    """Joins tensors or variables of any shapes to one vector."""
    flat = tf.constant([-1])  # one node for all
    return tf.concat([x if len(x.shape) == 1 else tf.reshape(x, flat) for x in values], 0)


def split_flat(variables: Sequence[Any], vector: tf.Tensor) -> list[tf.Tensor]:
    """Cuts what `flatten` made into tensors of the shapes of variables."""
    parts = tf.split(vector, [math.prod(v.shape) for v in variables])
    shapes = [tuple(v.shape) for v in variables]
    nodes = {
        shape: tf.constant(shape, tf.int32) for shape in dict.fromkeys(shapes) if len(shape) != 1
    }
    return [
        tf.reshape(part, nodes[shape]) if shape in nodes else part
        for part, shape in zip(parts, shapes, strict=True)
    ]


def assign_flat(variables: Sequence[Any], vector: tf.Tensor) -> None:
    """Assigns to variables what `flatten` makes of their new values."""
    for variable, part in zip(variables, split_flat(variables, vector), strict=True):
        variable.assign(part)


def tensorflow_variables(variables: Sequence[Any]) -> list[tf.Variable]:
    """Returns the variables inside Keras 3's, which take longer to read and to assign."""
    return [v if isinstance(v, tf.Variable) else v.value for v in variables]


class _Group(NamedTuple):
    """Variables that are updated as one, and what the optimizer keeps for them."""

    variables: list[tf.Variable]
    slots: list[list[tf.Variable]]
    decays: bool


class FlatUpdate:
    """Updates a network as the Keras optimizer would that it is given, SGD or Adam.

    Attributes:
      variables: those of the network in the order of the flat gradient.
    """

    def __init__(
        self, config: TrainConfig, optimizer: Any, step: tf.Variable, variables: Sequence[Any]
    ):
        """Binds to the run's step and to the variables that the optimizer was built for."""
        self._config, self._optimizer, self._step = config, optimizer, step
        slots = [getattr(optimizer, name) for name in _SLOTS[config.optimizer]]
        decaying = {id(v) for v in kernels(variables)}
        self._groups, self._places = [], []
        for decays in (True, False):
            own = [i for i, v in enumerate(variables) if (id(v) in decaying) == decays]
            if own:
                parts = [tensorflow_variables([x[i] for i in own]) for x in (variables, *slots)]
                self._groups.append(_Group(parts[0], parts[1:], decays))
            self._places += own
        self.variables = [variables[i] for i in self._places]

    def run(
        self,
        strategy: tf.distribute.Strategy,
        gradient: tf.Tensor,
        factor: tf.Tensor,
        finite: tf.Tensor,
    ) -> None:
        """Updates all replicas and counts the step; where it is not finite, nothing changes.

        Args:
          strategy: of the replicas; call this outside of them.
          gradient: [N] float32 on each replica, of the batch of all.
          factor: [] float32, what the gradient is to be multiplied by.
          finite: [] bool.
        """
        strategy.run(self._apply, (gradient, factor, finite))
        iterations = self._optimizer.iterations
        iterations.assign_add(tf.cast(finite, iterations.dtype))

    def _apply(self, gradient: tf.Tensor, factor: tf.Tensor, finite: tf.Tensor) -> None:
        if self._config.clip_norm:
            gradient, factor = gradient * factor, self._shrinking(gradient * factor)
        rate = learning_rate(self._config, self._step)
        rule = self._sgd if self._config.optimizer == "sgd" else self._adam
        sizes = [sum(math.prod(v.shape) for v in group.variables) for group in self._groups]
        for group, part in zip(self._groups, tf.split(gradient, sizes), strict=True):
            own = [group.variables, *group.slots]
            old = [flatten(variables) for variables in own]
            new = rule(rate, self._config.weight_decay * group.decays, part, factor, *old)
            for variables, before, after in zip(own, old, new, strict=True):
                assign_flat(variables, tf.where(finite, after, before))

    def _shrinking(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns what clipping multiplies a gradient by.

        The norm is added up variable by variable, in the order of the model's.
        """
        parts = tf.split(gradient, [math.prod(v.shape) for v in self.variables])
        in_order = [part for _, part in sorted(zip(self._places, parts, strict=True))]
        norm = tf.linalg.global_norm(in_order)
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
    """Updates a network by an optimizer of TensorFlow Addons, which has an arithmetic of its own.

    Attributes:
      variables: see `FlatUpdate`.
    """

    def __init__(
        self, config: TrainConfig, optimizer: Any, step: tf.Variable, variables: Sequence[Any]
    ):
        """Binds as `FlatUpdate` does."""
        self._config, self._optimizer, self._step = config, optimizer, step
        self.variables = variables

    def run(
        self,
        strategy: tf.distribute.Strategy,
        gradient: tf.Tensor,
        factor: tf.Tensor,
        finite: tf.Tensor,
    ) -> None:
        """Does what `FlatUpdate.run` does."""
        replicas = strategy.num_replicas_in_sync

        def apply(gradient: tf.Tensor, factor: tf.Tensor) -> None:
            gradients = [part * factor for part in split_flat(self.variables, gradient)]
            if self._config.clip_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, self._config.clip_norm)
            if replicas > 1:
                gradients = [g / replicas for g in gradients]  # the optimizer adds them up
            decay_weights(self._config, self._step, self.variables)
            self._optimizer.apply_gradients(zip(gradients, self.variables, strict=True))

        tf.cond(finite, lambda: strategy.run(apply, (gradient, factor)), lambda: None)


def make_update(
    config: TrainConfig, optimizer: Any, step: tf.Variable, variables: Sequence[Any]
) -> FlatUpdate | AddonUpdate:
    """Makes the update for an optimizer that was built for some variables of a network."""
    kind = AddonUpdate if config.optimizer in ADDON_OPTIMIZERS else FlatUpdate
    return kind(config, optimizer, step, variables)
