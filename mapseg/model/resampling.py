"""Resampling of feature maps whose sample i lies on pixel i * stride.

Each operation is two matrix products, along rows and along columns. They accept any size and stay
in the compute dtype; TensorFlow's resize returns float32, which breaks mixed precision under XLA.
"""

from typing import Any

import keras
import tensorflow as tf


class Upsample(keras.layers.Layer):
    """Up-samples a feature map bilinearly by a factor and crops it to the size of another tensor.

    Output i lies on input i / factor ("align corners").
    """

    def __init__(self, factor: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Maps ([B, h, w, C] float, [B, H, W, ...]) to [B, H, W, C] float."""
        x, like = inputs
        size, shape = tf.shape(like)[1:3], tf.shape(x)
        rows, columns = (
            interpolation_matrix(tf.range(tf.cast(size[i], tf.float32)) / self.factor, shape[i + 1])
            for i in range(2)
        )
        return _resampled(x, rows, columns)


class WindowMeans(keras.layers.Layer):
    """Averages a feature map over square windows, centred on every stride-th sample.

    Windows are clipped at the border: the means are over existing samples only.
    """

    def __init__(self, window: int, stride: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.window = window
        self.stride = stride

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [B, H, W, C] float to [B, ceil(H / stride), ceil(W / stride), C] float."""
        rows, columns = (self._means(tf.shape(x)[axis]) for axis in (1, 2))
        return _resampled(x, rows, columns)

    def _means(self, size: tf.Tensor) -> tf.Tensor:
        samples = tf.range(size)
        distance = tf.abs(samples[:: self.stride, tf.newaxis] - samples)
        inside = tf.cast(distance <= self.window // 2, tf.float32)
        return inside / tf.reduce_sum(inside, axis=1, keepdims=True)


def resize_aligned(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Does the same as `Upsample` if the last samples of both maps lie on the same pixel.

    On a CPU it is several times faster; it always returns float32.

    Args:
      x: [B, h, w, C] float.
      like: [B, H, W, ...], used for its size; H - 1 must be a multiple of h - 1, and W - 1 of
        w - 1, unless x is a single sample.

    Returns:
      [B, H, W, C] float32.
    """
    return tf.raw_ops.ResizeBilinear(images=x, size=tf.shape(like)[1:3], align_corners=True)


def interpolation_matrix(positions: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Builds the matrix of linear interpolation between samples.

    Args:
      positions: [n] float32 coordinates; 0 is the first sample, size - 1 the last. Positions
        beyond the ends are clamped.
      size: number of samples.

    Returns:
      [n, size] float32 weights, at most two per row, each row summing to 1. Multiplied by the
      samples, they yield the values at the positions.
    """
    samples = tf.range(tf.cast(size, tf.float32))
    positions = tf.clip_by_value(positions, 0.0, samples[-1])
    return tf.maximum(0.0, 1.0 - tf.abs(positions[:, tf.newaxis] - samples))


def resizing_matrix(size: tf.Tensor, resized: tf.Tensor) -> tf.Tensor:
    """Builds the matrix that resizes one side of an image bilinearly, with antialiasing.

    It is what `tf.image.resize` does with `antialias=True`: pixel centres lie at half-integers, and
    the filter is as wide as a pixel of the smaller image.

    Args:
      size: [] int32 number of pixels.
      resized: [] int32 number of pixels of the result.

    Returns:
      [resized, size] float32 weights; each row sums to 1.
    """
    step = tf.cast(size, tf.float32) / tf.cast(resized, tf.float32)
    centres = (tf.range(tf.cast(resized, tf.float32)) + 0.5) * step - 0.5
    distance = tf.abs(centres[:, tf.newaxis] - tf.range(tf.cast(size, tf.float32)))
    weights = tf.maximum(0.0, 1.0 - distance / tf.maximum(step, 1.0))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


def _resampled(x: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Multiplies [B, h, w, C] by [H, h] and [W, w]."""
    shape, height = tf.shape(x), tf.shape(rows)[0]
    flat = tf.reshape(x, [shape[0], shape[1], shape[2] * x.shape[3]])
    flat = tf.matmul(tf.cast(rows, x.dtype), flat)
    x = tf.reshape(flat, [shape[0], height, shape[2], x.shape[3]])
    return tf.matmul(tf.cast(columns, x.dtype), x)
