"""One compiled training step under tf.distribute, and several in one call."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.machine import gpus
from mapseg.model.deeplab import coarse_model
from mapseg.training import optimizers
from mapseg.training.losses import make_loss
from mapseg.training.state import TrainState, use_xla

_STEPS_PER_CALL_ON_GPU = 10

Step = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
Steps = Callable[[Iterator[Any], tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
# (image, label, unit) -> [the loss's sum, labelled pixels, gradients of the sum times unit ...]
_Differentiate = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], list[tf.Tensor]]


def make_step(
    state: TrainState,
    config: TrainConfig,
    strategy: tf.distribute.Strategy,
    class_pixels: Sequence[int] | np.ndarray = (),
) -> Step:
    """Compiles the training step: (image, label) -> (loss [] float32, finite [] bool).

    The loss is the mean over the labelled pixels of the batch of all devices, and the gradient is
    that of this mean, clipped as a whole, into how many devices and parts it may be cut. If a
    gradient anywhere is not finite, no variable changes but the step's number and the loss
    scale: the moving statistics that the forward pass already wrote are put back.
    """
    replicas, moving = strategy.num_replicas_in_sync, state.model.non_trainable_variables
    compiled = use_xla(config, strategy)
    differentiate = _make_differentiate(state, config, class_pixels)
    if config.accumulate_steps > 1:
        differentiate = _in_parts(differentiate, state, config, replicas)
    apply = _make_apply(state, config, replicas)

    # XLA compiles all of the step on one device, and on several what each does alone.
    @tf.function(jit_compile=compiled, autograph=False)
    def forward(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
        before = [tf.identity(v) for v in moving]
        # The number of labelled pixels on all devices is not yet known: all pixels stand for it.
        unit = tf.convert_to_tensor(state.loss_scale.scale) / _pixels(label, replicas)
        total, pixels, *gradients = differentiate(image, label, unit)
        broken = [tf.logical_not(tf.reduce_all(tf.math.is_finite(x))) for x in (total, *gradients)]
        facts = tf.stack([total, pixels, tf.cast(tf.reduce_any(broken), tf.float32)])
        return facts, gradients, before

    def add_up(facts: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, facts)

    def first(value: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(value)[0]

    def restore(before: Sequence[tf.Tensor]) -> None:
        for variable, value in zip(moving, before, strict=True):
            variable.assign(value)

    # The verdict is taken outside the replicas, for all of them: were each to decide for itself,
    # one with an overflow would leave the others waiting for its gradients.
    @tf.function(jit_compile=compiled and replicas == 1, autograph=False)
    def step(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        facts, gradients, before = strategy.run(forward, (image, label))
        total, pixels, broken = tf.unstack(first(strategy.run(add_up, (facts,))))
        finite = broken == 0
        share = tf.math.divide_no_nan(_pixels(first(label), replicas), pixels)
        tf.cond(
            finite,
            lambda: strategy.run(apply, (gradients, share / state.loss_scale.scale)),
            lambda: strategy.run(restore, (before,)),
        )
        state.loss_scale.update(finite)
        state.step.assign_add(1)
        return tf.math.divide_no_nan(total, pixels), finite

    return step


def _make_differentiate(
    state: TrainState, config: TrainConfig, class_pixels: Sequence[int] | np.ndarray
) -> _Differentiate:
    logits_of, factor = coarse_model(state.model, recompute=config.recompute)
    loss_of = make_loss(config, class_pixels)

    def differentiate(image: tf.Tensor, label: tf.Tensor, unit: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            total, pixels = loss_of(logits_of(image), label, factor)
            objective = total * unit
        return [total, pixels, *tape.gradient(objective, state.model.trainable_variables)]

    return differentiate


def _in_parts(
    differentiate: _Differentiate, state: TrainState, config: TrainConfig, replicas: int
) -> _Differentiate:
    """Differentiates one part of the batch after the other, and adds up what they give."""
    parts = config.accumulate_steps

    def accumulate(image: tf.Tensor, label: tf.Tensor, unit: tf.Tensor) -> list[tf.Tensor]:
        images, labels = (tf.reshape(x, [parts, -1, *x.shape[1:]]) for x in (image, label))

        def add(part: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
            state.dropout_seed.part = part
            found = differentiate(images[part], labels[part], unit)
            return [part + 1, *(a + b for a, b in zip(sums, found, strict=True))]

        trained = state.model.trainable_variables
        sums = [tf.zeros([]), tf.zeros([]), *(tf.zeros(v.shape) for v in trained)]
        if config.sync_batch_norm and replicas > 1:  # a loop cannot hold what devices say
            for part in range(parts):
                with tf.control_dependencies(sums):
                    _, *sums = add(part, *sums)
        else:
            _, *sums = tf.while_loop(
                lambda part, *_: part < parts,
                add,
                [tf.constant(0), *sums],
                parallel_iterations=1,
                maximum_iterations=parts,
            )
        state.dropout_seed.part = 0
        return sums

    return accumulate


def _make_apply(
    state: TrainState, config: TrainConfig, replicas: int
) -> Callable[[Sequence[tf.Tensor], tf.Tensor], None]:
    """Makes the update of a replica: clipping, weight decay, optimizer."""
    trained = state.model.trainable_variables

    def apply(gradients: Sequence[tf.Tensor], factor: tf.Tensor) -> None:
        gradients = [g * factor for g in gradients]
        if config.clip_norm:
            context = tf.distribute.get_replica_context()
            if replicas > 1:
                gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm)
            gradients = [g / replicas for g in gradients]  # the optimizer adds them up
        optimizers.decay_weights(config, state.step, trained)
        gradients = optimizers.add_decay(config, gradients, trained, replicas)
        state.optimizer.apply_gradients(zip(gradients, trained, strict=True))

    return apply


def _pixels(label: tf.Tensor, replicas: int) -> tf.Tensor:
    return tf.cast(tf.size(label) * replicas, tf.float32)


def make_steps(step: Step) -> Steps:
    """Makes several steps one call: (batches, count) -> (losses [count], finite [count] bool)."""

    @tf.function
    def steps(batches: Iterator[Any], count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        losses = tf.TensorArray(tf.float32, count)
        finite = tf.TensorArray(tf.bool, count)
        for i in tf.range(count):
            loss, sound = step(*next(batches))
            losses, finite = losses.write(i, loss), finite.write(i, sound)
        return losses.stack(), finite.stack()

    return steps


def steps_per_call(config: TrainConfig) -> int:
    """Says how many steps run without coming back to Python."""
    on_gpu = bool(gpus())
    return config.steps_per_call or (_STEPS_PER_CALL_ON_GPU if on_gpu else 1)


def make_averaging(state: TrainState, strategy: tf.distribute.Strategy) -> Callable[[], None]:
    """Makes a function that gives all devices the mean of their batch norms' moving statistics.

    Where each device normalizes over its own crops, the statistics drift apart; a checkpoint and
    an evaluation need one of each.
    """
    moving = state.model.non_trainable_variables

    def average() -> None:
        context = tf.distribute.get_replica_context()
        own = tf.concat([tf.reshape(v, [-1]) for v in moving], 0)
        mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, own)
        parts = tf.split(mean, [math.prod(v.shape) for v in moving])
        for variable, part in zip(moving, parts, strict=True):
            variable.assign(tf.reshape(part, variable.shape))

    @tf.function
    def run() -> None:
        strategy.run(average)

    return run
