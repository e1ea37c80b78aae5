"""Layers that Keras lacks or computes slowly: normalization, batch norm, stateless dropout."""

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


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer; training normalizes in one fused operation rather than a dozen.

    The moving variance averages the variances of the batches as Keras 3 defines them, without
    Bessel's correction. Keras's own form remains where statistics are frozen or shared between
    devices, under XLA (`for_xla`), which fuses it by itself, in float64, and in Keras 2, which has
    a fused one.
    """

    for_xla = False

    def call(
        self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Maps [B, H, W, C] float to the same shape and type."""
        keras_2_fuses = hasattr(self, "fused")
        keeps_form = self.synchronized or self.for_xla or keras_2_fuses
        if keeps_form or not (training and self.trainable) or inputs.dtype == tf.float64:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
        )
        size = inputs.shape.num_elements() or tf.cast(tf.size(inputs), tf.float32)
        count = size / inputs.shape[-1]
        biased = variance * ((count - 1) / count)
        for statistic, value in ((self.moving_mean, mean), (self.moving_variance, biased)):
            moving = statistic.value  # TensorFlow's variable, which takes less to read and assign
            moving.assign(moving + (value - moving) * (1 - self.momentum), read_value=False)
        return outputs


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
