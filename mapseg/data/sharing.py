"""Distributes training batches over the devices of several processes."""

import tensorflow as tf

from mapseg.data.batches import CropStream

_BATCHES_ON_DEVICE = 2


def share_batches(
    stream: CropStream, strategy: tf.distribute.Strategy, index: int, count: int, start_step: int
) -> tf.data.Dataset:
    """Reads this process's share of the training batches onto its devices.

    Args:
      stream: the training crops.
      strategy: each batch is divided equally among its replicas.
      index: number of this process, from 0.
      count: number of processes.
      start_step: the step of the first batch.

    Returns:
      Arguments for `strategy.run`: (image, label), per replica if there are several.
    """
    replicas = strategy.num_replicas_in_sync
    local = replicas // count

    def read(_: object = None) -> tf.data.Dataset:
        batches = stream.batches(start_step, index, count)

        def split(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tuple(tf.reshape(x, [local, -1, *x.shape[1:]]) for x in (image, label))

        return batches.map(split).unbatch() if local > 1 else batches

    if replicas > 1:
        return strategy.distribute_datasets_from_function(read)
    return onto_device(read())


def onto_device(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Prefetches batches to the GPU, if there is one."""
    if not tf.config.list_logical_devices("GPU"):
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device("/GPU:0", _BATCHES_ON_DEVICE))
