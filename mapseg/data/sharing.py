"""Sharing out training batches over the devices of several processes."""

import tensorflow as tf

from mapseg.data.batches import CropStream

_BATCHES_ON_DEVICE = 2


def share_batches(
    stream: CropStream, strategy: tf.distribute.Strategy, index: int, count: int, start_step: int
) -> tf.data.Dataset:
    """Reads a process's shares of the training batches, onto its devices.

    Args:
      stream: the training crops.
      strategy: one share of each batch for each of its replicas.
      index: which process this is, from 0.
      count: how many processes there are.
      start_step: the first batch is the one of this step.

    Returns:
      What `strategy.run` takes: (image, label), for several devices one of each.
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
    """Copies batches onto the GPU, where there is one, ahead of the steps that take them."""
    if not tf.config.list_logical_devices("GPU"):
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device("/GPU:0", _BATCHES_ON_DEVICE))
