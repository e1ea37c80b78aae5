"""Takes training steps of a small network on some devices and writes the results.

    python tests/take_steps.py mirrored|multi_worker OUT.npz

Mirrored splits the CPU into two devices; multi_worker is run twice, with TF_CONFIG. The arrays of
each case of CASES must not depend on the devices, except for the loss of `own_norm`, and for
`sync_norm_in_parts`, whose parts have other crops. Lovasz-softmax would: it ranks pixels by device.
"""

import sys
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.model.layers import BatchNormalization
from mapseg.model.resampling import Upsample
from mapseg.training import devices as strategy
from mapseg.training.optimizers import LossScale, build_optimizer
from mapseg.training.state import DropoutSeed, freeze_batch_norm, synchronize_batch_norm
from mapseg.training.step import make_averaging, make_step, make_steps

BATCH = TrainConfig(loss="ce", schedule_steps=100, learning_rate=0.1, batch_size=4)
FROZEN = replace(BATCH, batch_norm="frozen")
CASES = {
    "frozen_norm": FROZEN,
    "clipped": replace(FROZEN, clip_norm=0.02, optimizer="adamw"),
    "in_parts": replace(FROZEN, accumulate_steps=2),
    "clipped_in_parts": replace(FROZEN, accumulate_steps=2, clip_norm=0.02),
    "compiled": replace(FROZEN, xla="on"),
    "sync_norm": replace(BATCH, sync_batch_norm=True),
    "sync_norm_in_parts": replace(BATCH, sync_batch_norm=True, accumulate_steps=2),
    "own_norm": BATCH,
    "overflow": replace(FROZEN, precision="mixed_float16"),
    "overflow_sync_norm": replace(BATCH, precision="mixed_float16", sync_batch_norm=True),
}
OWN_NORM_STEPS = 1  # after one step the average of the replicas' moving means is the batch's


class SmallState:
    """The training state of a network with two convolutions and a batch norm."""

    def __init__(self, config):
        keras.utils.set_random_seed(1)
        image = keras.Input((None, None, 3), dtype="uint8")
        x = keras.layers.Rescaling(1 / 255, dtype="float32", name="rescale")(image)
        x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(x)
        x = BatchNormalization(name="norm")(x)
        x = keras.layers.Conv2D(3, 1, dtype="float32", name="logits-semantic")(x)
        x = Upsample(1, dtype="float32", name="logits-upsample")([x, image])
        self.model = keras.Model(image, x)
        if config.batch_norm == "frozen":
            freeze_batch_norm(self.model)
        if config.sync_batch_norm:
            synchronize_batch_norm(self.model)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.dropout_seed = DropoutSeed(config.seed, self.step)
        self.optimizer = build_optimizer(config, self.step, self.model.trainable_variables)
        self.loss_scale = LossScale(dynamic=config.precision == "mixed_float16")
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer, step=self.step, loss_scale=self.loss_scale
        )

    def arrays(self):
        arrays = [*self.model.variables]
        wrapped = getattr(self.optimizer, "_optimizer", None)  # Lookahead's
        for optimizer in (self.optimizer, *([wrapped] if wrapped is not None else [])):
            variables = optimizer.variables
            arrays += variables() if callable(variables) else variables
        return [np.array(v) for v in arrays]


def small_batch(rows=2):
    """A batch; with over two rows its first image has no labels, so that devices differ."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, [rows, 8, 8, 3], np.uint8)
    label = image[..., 0] // 86
    if rows > 2:
        label[0] = 255
    return tf.constant(image), tf.constant(label)


def share(workers, batch):
    """Repeats this process's part of a batch, split over its devices."""
    local = workers.replicas // workers.count
    rows = len(batch[0]) // workers.count
    local_batch = [x[workers.index * rows : (workers.index + 1) * rows] for x in batch]
    parts = tf.data.Dataset.from_tensor_slices(tuple(local_batch)).batch(rows // local).repeat()
    if workers.replicas == 1:
        return iter(parts)
    return iter(workers.strategy.distribute_datasets_from_function(lambda _: parts))


def take(workers, name, config):
    """Trains a case; returns the losses and the variables."""
    with workers.strategy.scope():
        state = SmallState(config)
    batches = share(workers, small_batch(4))
    steps = make_steps(make_step(state, config, workers.strategy))
    if name.startswith("overflow"):
        return overflow(workers, state, steps, batches)
    count = OWN_NORM_STEPS if name == "own_norm" else 5
    losses, finite, norms = steps(batches, tf.constant(count))
    assert np.all(finite)
    if name == "own_norm":
        if workers.replicas > 1:
            make_averaging(state, workers.strategy)()
        norm = state.model.get_layer("norm")
        return [losses, np.array(norm.moving_mean)]
    return [losses, norms, *state.arrays()]


def overflow(workers, state, steps, batches):
    """Only the second half of the batch overflows; no device may update, hang or differ."""
    image, label = small_batch(4)
    label = label.numpy()
    label[:2] = 255
    state.loss_scale.scale.assign(3e38)
    # On devices with labels, a loss of this size times the scale overflows float32.
    kernel = state.model.get_layer("logits-semantic").kernel
    small = np.array(kernel)
    kernel.assign(small * 1e6)
    changed = state.arrays()
    _, finite, _ = steps(share(workers, (image, tf.constant(label))), tf.constant(1))
    assert not np.any(finite), finite
    for value, old in zip(state.arrays(), changed, strict=True):
        np.testing.assert_array_equal(value, old)
    assert state.loss_scale.scale.numpy() == np.float32(3e38) / 2
    kernel.assign(small)
    state.loss_scale.scale.assign(1024.0)
    losses, finite, norms = steps(batches, tf.constant(3))
    assert np.all(finite)
    return [losses, norms, *state.arrays()]


def main(kind, out_path):
    if kind == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
    config = replace(BATCH, strategy=kind, peer_timeout_secs=1200)
    strategy._CONNECT_SECS = 1200.0  # for slow machines
    workers = strategy.join(config, {}, print, lambda: False)
    assert workers.replicas == 2
    arrays = {
        f"{name}/{i}": np.array(value)
        for name, case in CASES.items()
        if (kind, name) != ("mirrored", "compiled")  # XLA supports one device per process
        for i, value in enumerate(take(workers, name, case))
    }
    np.savez(out_path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
