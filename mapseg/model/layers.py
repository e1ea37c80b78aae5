"""Layers between the image and the loss that Keras lacks: normalization, stateless dropout."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Normalization:
    """How uint8 RGB becomes an encoder's input: (image - mean) / scale, then perhaps as BGR."""

    mean: tuple[float, float, float]
    scale: float
    bgr: bool = False


class Normalize(keras.layers.Layer):
    """Turns uint8 RGB into an encoder's input, zero-padded to a multiple of a stride plus one.

    The padding is at bottom and right, and the padded sides are at least one stride plus one.
    """

    def __init__(self, normalization: Normalization, stride: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.normalization = normalization
        self.stride = stride

    def call(self, image: tf.Tensor) -> tf.Tensor:
        """Maps [B, H, W, 3] uint8 to [B, H', W', 3] in the compute dtype."""
        mean = self.normalization.mean
        if self.normalization.bgr:
            image, mean = tf.reverse(image, [-1]), mean[::-1]
        # One number for all channels is subtracted several times faster, to the same bits.
        subtracted = mean[0] if len({*mean}) == 1 else mean
        x = (tf.cast(image, tf.float32) - subtracted) / self.normalization.scale
        x = tf.cast(x, self.compute_dtype)
        size = tf.shape(image)[1:3]
        steps = tf.maximum((size + self.stride - 2) // self.stride, 1)
        border = steps * self.stride + 1 - size
        return tf.pad(x, [[0, 0], [0, border[0]], [0, border[1]], [0, 0]])


class StatelessDropout(keras.layers.Layer):
    """Dropout without state: the same seed drops the same values, replicas drop different ones.

    XLA's generator is another one: compiled, the same seed drops other values, always the same.
    """

    def __init__(self, rate: float, seed: Callable[[], tf.Tensor] | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self.draw_seed = seed

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [...] float to the same shape; in training some are zero, the others larger.

        Raises:
          ValueError: training without a seed.
        """
        if not training or self.rate == 0:
            return x
        if self.draw_seed is None:
            raise ValueError(
                "dropout_seed must be given to build_model for training with dropout; got None"
            )
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.random.experimental.stateless_fold_in(self.draw_seed(), replica)
        kept = tf.random.stateless_uniform(tf.shape(x), seed) >= self.rate
        return tf.where(kept, x / tf.cast(1 - self.rate, x.dtype), tf.zeros_like(x))
