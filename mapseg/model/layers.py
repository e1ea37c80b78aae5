"""Layers that Keras lacks or computes slowly: normalization, batch norm, stateless dropout."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from mapseg.machine import gpus


@dataclass(frozen=True)
class Normalization:
    """Conversion of uint8 RGB to an encoder's input: (image - mean) / scale, optionally as BGR."""

    mean: tuple[float, float, float]
    scale: float
    bgr: bool = False


class Normalize(keras.layers.Layer):
    """Converts uint8 RGB to an encoder's input, zero-padded to a multiple of a stride plus one.

    The padding is at the bottom and right; the padded sides are at least one stride plus one.
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
        # Subtracting one scalar for all channels is several times faster, with identical results.
        subtracted = mean[0] if len({*mean}) == 1 else mean
        x = (tf.cast(image, tf.float32) - subtracted) / self.normalization.scale
        x = tf.cast(x, self.compute_dtype)
        size = tf.shape(image)[1:3]
        steps = tf.maximum((size + self.stride - 2) // self.stride, 1)
        border = steps * self.stride + 1 - size
        return tf.pad(x, [[0, 0], [0, border[0]], [0, border[1]], [0, 0]])


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, computed by one fused operation where that is faster.

    The moving variance averages the batch variances as in Keras 3, without Bessel's correction.
    Keras's implementation is still used

    - in training with statistics that are frozen or synchronized between devices, in float64, and
      under XLA (`for_xla`), which fuses operations itself, and whose fused batch norm loses the
      variance where the mean is large,
    - in prediction, except in 16 bits on a GPU. On a CPU, mapseg predicts in float32, where
      networks are folded (`frozen_network`); in those that are not, the fused operation is slower,
    - in Keras 2, which has its own fused operation.
    """

    for_xla = False

    def call(
        self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Maps [B, H, W, C] float to the same shape and type."""
        if hasattr(self, "fused") or not self._is_fused(training):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=[] if training else self.moving_mean.value,
            variance=[] if training else self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if not training:
            return outputs
        size = inputs.shape.num_elements() or tf.cast(tf.size(inputs), tf.float32)
        count = size / inputs.shape[-1]
        biased = variance * ((count - 1) / count)
        for statistic, value in ((self.moving_mean, mean), (self.moving_variance, biased)):
            moving = statistic.value  # TensorFlow's variable: faster to read and assign
            moving.assign(moving + (value - moving) * (1 - self.momentum), read_value=False)
        return outputs

    def _is_fused(self, training: bool) -> bool:
        if not training:
            return self.compute_dtype in ("float16", "bfloat16") and bool(gpus())
        is_keras = self.for_xla or self.synchronized or not self.trainable
        return not is_keras and self.compute_dtype != "float64"


class StatelessDropout(keras.layers.Layer):
    """Dropout without state: a seed always drops the same values, but different ones per replica.

    XLA has its own random generator, with which a seed drops different values.
    """

    def __init__(self, rate: float, seed: Callable[[], tf.Tensor] | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self.draw_seed = seed

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [...] float to the same shape; in training some values are dropped, the rest scaled.

        Raises:
          ValueError: there is no seed in training.
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
