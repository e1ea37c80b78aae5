"""One compiled training step under tf.distribute, and several in one call."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from mapseg.compiling import skip_slow_fusions
from mapseg.config import TrainConfig
from mapseg.machine import gpus
from mapseg.model.deeplab import coarse_model
from mapseg.training.losses import make_loss
from mapseg.training.state import TrainState, use_xla
from mapseg.training.updates import assign, join_flat, make_update, tensorflow_variables

_STEPS_PER_CALL_ON_GPU = 10

Results = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # loss, finite, gradient norm
Step = Callable[[tf.Tensor, tf.Tensor], Results]
Steps = Callable[[Iterator[Any], tf.Tensor], Results]
# (image, label, unit) -> [summed loss, labelled pixels, gradients of summed loss * unit ...]
_Differentiate = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], list[tf.Tensor]]


def make_step(
    state: TrainState,
    config: TrainConfig,
    strategy: tf.distribute.Strategy,
    class_pixels: Sequence[int] | np.ndarray = (),
) -> Step:
    """Compiles the training step: (image, label) -> (loss, finite, norm).

    The loss [] float32 is the mean over the labelled pixels of the global batch, and its gradient
    is clipped by global norm, however many devices and parts the batch is split into; norm []
    float32 is that before clipping. If finite [] bool is false, that is, if the loss or a
    gradient is not finite on any replica, only the step number and the loss scale change: the
    moving statistics that the forward pass has already updated are restored.
    """
    replicas = strategy.num_replicas_in_sync
    compiled = use_xla(config, strategy)
    if compiled:
        skip_slow_fusions()
    joined = not (compiled and replicas == 1)
    trained = state.model.trainable_variables
    update = make_update(config, state.optimizer, state.step, trained, joined=joined)
    differentiate = _make_differentiate(state, config, class_pixels)
    if config.accumulate_steps > 1:
        differentiate = _in_parts(differentiate, state, config, replicas)
    moving = _moving_statistics(state, config, joined=joined)

    # XLA compiles the whole step on one device; on several, only the forward and backward pass.
    @tf.function(jit_compile=compiled, autograph=False)
    def forward(image: tf.Tensor, label: tf.Tensor) -> tuple[Any, ...]:
        before = [join_flat(group) for group in moving]
        # The number of labelled pixels on all devices is not known yet: divide by all pixels first.
        unit = tf.convert_to_tensor(state.loss_scale.scale) / _pixels(label, replicas)
        total, pixels, *gradients = differentiate(image, label, unit)
        return tf.stack([total, pixels]), update.join_gradients(gradients), before

    def first(value: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(value)[0]

    # Checked on the sums over the replicas, which are the same on all of them: if each replica
    # checked only its own gradients, the replicas would drift apart.
    @tf.function(jit_compile=compiled and replicas == 1, autograph=False)
    def step(image: tf.Tensor, label: tf.Tensor) -> Results:
        facts, gradients, before = strategy.run(forward, (image, label))
        if replicas > 1:
            facts, gradients = strategy.run(_add_up, (facts, gradients))
        total, pixels = tf.unstack(first(facts))
        sums = [total, *map(first, gradients)]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in sums])
        share = tf.math.divide_no_nan(_pixels(first(label), replicas), pixels)
        factor = share / state.loss_scale.scale
        norm = tf.linalg.global_norm(sums[1:]) * factor
        update.run(strategy, gradients, factor, finite)
        strategy.run(_put_back, (moving, before, finite))
        state.loss_scale.update(finite)
        state.step.assign_add(1)
        return tf.math.divide_no_nan(total, pixels), finite, norm

    return step


def _add_up(*tensors: Any) -> Any:
    """Sums tensors over the replicas."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def _moving_statistics(
    state: TrainState, config: TrainConfig, *, joined: bool
) -> list[list[tf.Variable]]:
    """Returns the variables that the forward pass updates, in the groups used to restore them."""
    if config.batch_norm == "frozen":
        return []
    moving = tensorflow_variables(state.model.non_trainable_variables)
    return [moving] if joined and moving else [[v] for v in moving]


def _put_back(
    moving: Sequence[Sequence[tf.Variable]], before: Sequence[tf.Tensor], finite: tf.Tensor
) -> None:
    """Restores a replica's moving statistics if the step is not finite."""
    for group, values in zip(moving, before, strict=True):
        assign(group, tf.where(finite, join_flat(group), values))


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
    """Differentiates the batch one part at a time, and sums the results."""
    parts = config.accumulate_steps

    def accumulate(image: tf.Tensor, label: tf.Tensor, unit: tf.Tensor) -> list[tf.Tensor]:
        images, labels = (tf.reshape(x, [parts, -1, *x.shape[1:]]) for x in (image, label))

        def add(part: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
            state.dropout_seed.part = part
            results = differentiate(images[part], labels[part], unit)
            return [part + 1, *(a + b for a, b in zip(sums, results, strict=True))]

        trained = state.model.trainable_variables
        sums = [tf.zeros([]), tf.zeros([]), *(tf.zeros(v.shape) for v in trained)]
        if config.sync_batch_norm and replicas > 1:  # tf.while_loop cannot contain an all-reduce
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


def _pixels(label: tf.Tensor, replicas: int) -> tf.Tensor:
    return tf.cast(tf.size(label) * replicas, tf.float32)


def make_steps(step: Step) -> Steps:
    """Runs several steps per call: (batches, count) -> losses, finite and norms, each [count]."""

    @tf.function(autograph=False)
    def steps(batches: Iterator[Any], count: tf.Tensor) -> Results:
        def take(i: tf.Tensor, *lists: tf.TensorArray) -> tuple[Any, ...]:
            results = step(*next(batches))
            return i + 1, *(x.write(i, result) for x, result in zip(lists, results, strict=True))

        lists = [tf.TensorArray(kind, count) for kind in (tf.float32, tf.bool, tf.float32)]
        _, losses, finite, norms = tf.while_loop(
            lambda i, *_: i < count, take, (tf.constant(0), *lists), parallel_iterations=1
        )
        return losses.stack(), finite.stack(), norms.stack()

    return without_rewriting(steps)


def without_rewriting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a compiled function so that TensorFlow does not rewrite its graph on a CPU.

    Rewriting delays the start by more than a second and makes no step faster. The setting
    is process-wide: functions that other threads first call meanwhile may not be rewritten either.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with nullcontext() if gpus() else _no_rewriting():
            return function(*args)

    return run


@contextmanager
def _no_rewriting() -> Iterator[None]:
    name, options = "disable_meta_optimizer", tf.config.optimizer
    before = options.get_experimental_options().get(name, False)
    options.set_experimental_options({name: True})
    try:
        yield
    finally:
        options.set_experimental_options({name: before})


def steps_per_call() -> int:
    """Returns how many steps run before control returns to Python."""
    return _STEPS_PER_CALL_ON_GPU if gpus() else 1


def make_averaging(state: TrainState, strategy: tf.distribute.Strategy) -> Callable[[], None]:
    """Makes a function that averages the batch norms' moving statistics over all devices.

    If each device normalizes over its own crops, the statistics drift apart, but a checkpoint and
    an evaluation need a single value.
    """
    moving = tensorflow_variables(state.model.non_trainable_variables)

    def average() -> None:
        context = tf.distribute.get_replica_context()
        assign(moving, context.all_reduce(tf.distribute.ReduceOp.MEAN, join_flat(moving)))

    @tf.function
    def run() -> None:
        strategy.run(average)

    return run
