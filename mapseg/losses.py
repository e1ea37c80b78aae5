"""Losses over labelled pixels only."""

import tensorflow as tf

from mapseg.labels import VOID


def cross_entropy(logits: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums the cross entropy over the labelled pixels.

    The sum and the count are apart so that replicas can add both before they divide: the mean over
    a batch is then the same on one device and on many.

    Args:
      logits: [B, H, W, C] float32.
      label: [B, H, W] uint8 ids below C, or VOID.

    Returns:
      (sum, number of labelled pixels), both [] float32; (0, 0) where all is VOID.
    """
    labelled = label != VOID
    ids = tf.where(labelled, tf.cast(label, tf.int32), 0)
    pixels = tf.nn.sparse_softmax_cross_entropy_with_logits(ids, logits)
    weight = tf.cast(labelled, tf.float32)
    return tf.reduce_sum(pixels * weight), tf.reduce_sum(weight)
