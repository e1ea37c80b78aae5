"""Shards -> batches; what is in a batch is a pure function of (records, config, step)."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.labels import make_label_set
from mapseg.records import decode_sample, index_split, read_manifest, read_record
from mapseg.transforms import augment

# Keeps the augmentation's random stream apart from the network's dropout.
_AUGMENTATION = 1


def sample_order(seed: int, position: tf.Tensor, samples: int) -> tf.Tensor:
    """Says which sample comes at a position of the endless, shuffled stream.

    Every epoch is a permutation of all samples, another one for each epoch, computed without a
    buffer, so that any position can be asked for.

    Args:
      seed: of the run.
      position: [] int64, 0 for the stream's first sample.
      samples: how many there are.

    Returns:
      [] int64 below `samples`.
    """
    epoch = position // samples
    key = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(position % samples, key, samples - 1)


def train_batches(records_dir: Path, config: TrainConfig, start_step: int = 0) -> tf.data.Dataset:
    """Reads the endless stream of training batches from a step on.

    Starting late costs nothing: the batch of a step is computed, not reached by reading.

    Args:
      records_dir: a folder made by `data_prep.build_records`.
      config: split, label set, batch and crop size, augmentation, seed.
      start_step: the first batch is the one of this step.

    Returns:
      Batches ([B, h, w, 3] uint8, [B, h, w] uint8 train ids or VOID).

    Raises:
      FileNotFoundError: no records there.
      ValueError: no such split, or a label set that does not fit.
    """
    manifest = read_manifest(records_dir)
    table = tf.constant(make_label_set(manifest.classes, config.label_set).table)
    index = index_split(records_dir, config.train_split)
    samples = len(index)

    def read(i: np.ndarray) -> bytes:
        return read_record(index, int(i))

    def make_crop(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        i = sample_order(config.seed, position, samples)
        record = tf.numpy_function(read, [i], tf.string, stateful=False)
        image, label, _ = decode_sample(tf.ensure_shape(record, []), table)
        key = tf.random.experimental.stateless_fold_in([config.seed, _AUGMENTATION], position)
        return augment(image, label, config, key)

    first = start_step * config.batch_size
    positions = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    crops = positions.map(make_crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return crops.batch(config.batch_size, drop_remainder=True).prefetch(2)
