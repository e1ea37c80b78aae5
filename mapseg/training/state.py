"""The state that a training step changes: network, optimizer, step and loss scale."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.model.convolutions import use_forms_for_xla
from mapseg.model.deeplab import build_model
from mapseg.runs.checkpoints import find_checkpoint, read_state
from mapseg.runs.folder import Run
from mapseg.training import optimizers
from mapseg.training.initial_weights import init_weights
from mapseg.training.updates import tensorflow_variables

# Separates dropout's random stream from the augmentation's, which is 1.
_DROPOUT = 2


class DropoutSeed:
    """The seed of dropout: a different one for each step and each part of its batch.

    The run's seed is a variable, not a graph constant, so that code compiled by XLA is the same
    for all seeds.
    """

    def __init__(self, seed: int, step: tf.Variable):
        # TensorFlow keeps int32 variables on the CPU; a step compiled for a GPU cannot read them.
        self._seed = tf.Variable(seed, trainable=False, dtype=tf.int64, name="seed")
        self._step = step
        self.part: int | tf.Tensor = 0  # set while the step is traced

    def __call__(self) -> tf.Tensor:
        """Returns [2] int32."""
        seed = tf.random.experimental.stateless_fold_in(
            tf.stack([tf.cast(self._seed, tf.int32), _DROPOUT]), self._step
        )
        return tf.random.experimental.stateless_fold_in(seed, self.part)


@dataclass(frozen=True)
class TrainState:
    """All state that a step changes; `checkpoint` contains it."""

    model: keras.Model
    optimizer: Any
    step: tf.Variable
    loss_scale: optimizers.LossScale
    dropout_seed: DropoutSeed
    checkpoint: tf.train.Checkpoint


def build_state(run: Run, progress: Callable[[str], None], *, fresh: bool) -> TrainState:
    """Builds the network and the optimizer; must be called in the strategy's scope.

    Args:
      run: the run to build for.
      progress: receives lines about the initial weights.
      fresh: load the initial weights of a new run; otherwise a checkpoint will be restored.
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


def open_state(
    run: Run,
    strategy: tf.distribute.Strategy,
    progress: Callable[[str], None],
    *,
    resumed: bool,
) -> TrainState:
    """Builds the network and optimizer on the devices, from the newest checkpoint or from scratch.

    Args:
      run: the run to build for.
      strategy: the devices.
      progress: receives lines about the initial weights.
      resumed: whether the run has a checkpoint.

    Raises:
      FileNotFoundError: the initial weights do not exist, or the checkpoint is incomplete.
      ValueError: the initial weights or the checkpoint do not fit the network.
    """
    with strategy.scope():
        state = build_state(run, progress, fresh=not resumed)
    if resumed:
        read_state(find_checkpoint(run.run_dir, "latest"), state.checkpoint)
    return state


def state_facts(state: TrainState) -> dict[str, float]:
    """Returns the columns of the history that describe a state."""
    weights = tensorflow_variables(state.model.trainable_variables)
    return {
        "loss_scale": float(state.loss_scale.scale.numpy()),
        "weight_norm": float(tf.linalg.global_norm(weights).numpy()),
    }


def freeze_batch_norm(model: keras.Model) -> None:
    """Freezes every batch norm: it uses its moving statistics, and is not trained."""
    for norm in _batch_norms(model):
        norm.trainable = False


def synchronize_batch_norm(model: keras.Model) -> None:
    """Makes every batch norm normalize over the crops of all devices."""
    for norm in _batch_norms(model):
        norm.synchronized = True
        norm.fused = False  # the fused operation of Keras 2 normalizes per device


def _batch_norms(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    return (x for x in _layers(model) if isinstance(x, keras.layers.BatchNormalization))


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def use_xla(config: TrainConfig, strategy: tf.distribute.Strategy) -> bool:
    """Returns whether XLA compiles the step.

    Raises:
      ValueError: `xla` is on, but XLA cannot compile the step.
    """
    if config.xla != "on":
        return False
    problem, several = "", strategy.num_replicas_in_sync > 1
    if several and len(strategy.extended.worker_devices) > 1:
        problem = "one device in each process"
    elif several and config.sync_batch_norm:
        problem = "sync_batch_norm off: XLA cannot compile communication between devices"
    if problem:
        raise ValueError(
            f"xla=on must be used with {problem}. Remedy: --xla=off, or see "
            "docs/several_machines.md for how to start one process per device"
        )
    return True
