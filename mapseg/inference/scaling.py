"""The factor by which images are resized for the network, and their size afterwards."""

import tensorflow as tf

from mapseg.config import PredictConfig


def base_scale(config: PredictConfig, size: tf.Tensor, long_side_px: int) -> tf.Tensor:
    """Returns the factor that `config.scales` multiply: [] float32.

    Args:
      config: its `scale` is a number or `auto`.
      size: [2] int32, (height, width) of the image.
      long_side_px: long side of the images that the network was trained on, for `auto`.
    """
    if config.scale == "auto":
        return long_side_px / tf.cast(tf.reduce_max(size), tf.float32)
    return tf.constant(float(config.scale), tf.float32)


def scaled_size(size: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Returns the size [2] int32 of an image resized by a factor: at least one pixel."""
    return tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32), 1)
