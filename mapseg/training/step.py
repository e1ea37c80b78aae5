"""One compiled training step under tf.distribute, and several in one call."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.machine import gpus
from mapseg.model.convolutions import use_forms_for_xla
from mapseg.model.deeplab import build_model, coarse_model
from mapseg.runs.checkpoints import Run
from mapseg.training import optimizers
from mapseg.training.initial_weights import init_weights
from mapseg.training.losses import make_loss

# Keeps dropout's random stream apart from the augmentation's, which is 1.
_DROPOUT = 2
_STEPS_PER_CALL_ON_GPU = 10

Step = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
Steps = Callable[[Iterator[Any], tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class DropoutSeed:
    """Gives the seed of dropout: another one in each step and in each part of its batch.

    The run's seed is a variable, not a constant of the graph: what XLA compiled for one seed serves
    every other.
    """

    def __init__(self, seed: int, step: tf.Variable):
        self._seed = tf.Variable(seed, trainable=False, dtype=tf.int32, name="seed")
        self._step = step
        self.part: int | tf.Tensor = 0  # set while the step is traced

    def __call__(self) -> tf.Tensor:
        """Returns [2] int32."""
        seed = tf.random.experimental.stateless_fold_in(
            tf.stack([self._seed, _DROPOUT]), self._step
        )
        return tf.random.experimental.stateless_fold_in(seed, self.part)


@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; `checkpoint` holds all of it."""

    model: keras.Model
    optimizer: Any
    step: tf.Variable
    loss_scale: optimizers.LossScale
    dropout_seed: DropoutSeed
    checkpoint: tf.train.Checkpoint


def build_state(run: Run, progress: Callable[[str], None], *, fresh: bool) -> TrainState:
    """Builds network and optimizer; call it in the strategy's scope.

    Args:
      run: what to build.
      progress: takes lines on where the weights come from.
      fresh: load the weights that a new run starts from; otherwise a checkpoint is to follow.
    """
    keras.utils.set_random_seed(run.train.seed)
    step = tf.Variable(0, trainable=False, dtype=tf.int64, name="step")
    dropout_seed = DropoutSeed(run.train.seed, step)
    config = run.model
    if not fresh or (run.train.init_from and config.encoder_weights == "auto"):
        config = replace(config, encoder_weights="none")
    model = build_model(
        config,
        len(run.label_set.classes),
        dropout_seed=dropout_seed,
        precision=run.train.precision,
    )
    if fresh and run.train.init_from:
        for line in init_weights(model, run.train.init_from, run.label_set):
            progress(line)
    if run.train.batch_norm == "frozen":
        freeze_batch_norm(model)
    if run.train.sync_batch_norm:
        synchronize_batch_norm(model)
    if use_xla(run.train, tf.distribute.get_strategy()):
        use_forms_for_xla(_layers(model))
    optimizer = optimizers.build_optimizer(run.train, step, model.trainable_variables)
    loss_scale = optimizers.LossScale(dynamic=run.train.precision == "mixed_float16")
    checkpoint = tf.train.Checkpoint(
        model=model, optimizer=optimizer, step=step, loss_scale=loss_scale
    )
    return TrainState(model, optimizer, step, loss_scale, dropout_seed, checkpoint)


def freeze_batch_norm(model: keras.Model) -> None:
    """Keeps every batch norm as it is: its statistics are used and nothing of it is trained."""
    for norm in _batch_norms(model):
        norm.trainable = False


def synchronize_batch_norm(model: keras.Model) -> None:
    """Lets every batch norm normalize over the crops of all devices."""
    for norm in _batch_norms(model):
        norm.synchronized = True
        norm.fused = False  # Keras 2 has a form that looks at one device alone


def _batch_norms(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    return (x for x in _layers(model) if isinstance(x, keras.layers.BatchNormalization))


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def use_xla(config: TrainConfig, strategy: tf.distribute.Strategy) -> bool:
    """Says whether XLA compiles the step.

    Raises:
      ValueError: it cannot, but is asked for.
    """
    problem, several = "", strategy.num_replicas_in_sync > 1
    if several and len(strategy.extended.worker_devices) > 1:
        problem = "one device in each process"
    elif several and config.sync_batch_norm:
        problem = "sync_batch_norm off: it cannot compile what devices say to each other"
    if config.xla == "on" and problem:
        raise ValueError(
            f"xla=on must be used with {problem}. Remedy: --xla=auto, or see "
            "docs/several_machines.md on a process for each device"
        )
    on_gpu = bool(gpus())
    return config.xla == "on" or (config.xla == "auto" and on_gpu and not problem)


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
    optimizer, replicas = state.optimizer, strategy.num_replicas_in_sync
    trained, moving = state.model.trainable_variables, state.model.non_trainable_variables
    logits_of, factor = coarse_model(state.model, recompute=config.recompute)
    loss_of = make_loss(config, class_pixels)
    compiled = use_xla(config, strategy)
    parts = config.accumulate_steps

    def differentiate(image: tf.Tensor, label: tf.Tensor, unit: tf.Tensor) -> list[tf.Tensor]:
        """The loss's sum, the labelled pixels, and the gradients of the sum times `unit`."""
        with tf.GradientTape() as tape:
            total, pixels = loss_of(logits_of(image), label, factor)
            objective = total * unit
        return [total, pixels, *tape.gradient(objective, trained)]

    def accumulate(image: tf.Tensor, label: tf.Tensor, unit: tf.Tensor) -> list[tf.Tensor]:
        """The same, from one part of the batch after the other."""
        images, labels = (tf.reshape(x, [parts, -1, *x.shape[1:]]) for x in (image, label))

        def add(part: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
            state.dropout_seed.part = part
            found = differentiate(images[part], labels[part], unit)
            return [part + 1, *(a + b for a, b in zip(sums, found, strict=True))]

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

    # XLA compiles all of the step on one device, and on several what each does alone.
    @tf.function(jit_compile=compiled, autograph=False)
    def forward(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
        before = [tf.identity(v) for v in moving]
        # The number of labelled pixels on all devices is not yet known: all pixels stand for it.
        unit = tf.convert_to_tensor(state.loss_scale.scale) / _pixels(label, replicas)
        run = differentiate if parts == 1 else accumulate
        total, pixels, *gradients = run(image, label, unit)
        broken = [tf.logical_not(tf.reduce_all(tf.math.is_finite(x))) for x in (total, *gradients)]
        facts = tf.stack([total, pixels, tf.cast(tf.reduce_any(broken), tf.float32)])
        return facts, gradients, before

    def add_up(facts: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, facts)

    def first(value: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(value)[0]

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
        optimizer.apply_gradients(zip(gradients, trained, strict=True))

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
