"""Convolutions in forms that XLA compiles to fast code.

Keras's layers call `tf.nn.convolution` and `tf.nn.depthwise_conv2d`. With dilation these move the
pixels into the batch and back, which XLA does as written; for each depthwise convolution it
searches a library's kernels, and they are slow. Here a dilated convolution is one operation, and a
depthwise one is nine shifted copies, weighted and added in one pass over memory. Without XLA
both are slower or cannot be, so they serve in training that it compiles, and Keras's elsewhere.
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf


def use_forms_for_xla(layers: Iterable[keras.layers.Layer]) -> None:
    """Lets those of some layers that are of this module train in their forms for XLA."""
    for layer in layers:
        if isinstance(layer, Conv2D | DepthwiseConv2D):
            layer.for_xla = True


class Conv2D(keras.layers.Conv2D):
    """Keras's layer; `for_xla`, in training, with dilation as one operation."""

    for_xla = False

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, C] float to [B, H', W', filters]."""
        if not (self.for_xla and training) or tuple(self.dilation_rate) == (1, 1):
            return super().call(inputs)
        kernel, *bias = (tf.cast(w, inputs.dtype) for w in self.weights)
        padding, rate = self.padding.upper(), self.dilation_rate
        x = tf.nn.conv2d(inputs, kernel, self.strides, padding, dilations=rate)
        return x + bias[0] if bias else x


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's layer; `for_xla`, in training, a 3x3 of stride 1 as nine shifted products."""

    for_xla = False

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, C] float to [B, H', W', C]."""
        form = (tuple(self.kernel_size), tuple(self.strides), self.use_bias)
        if not (self.for_xla and training) or form != ((3, 3), (1, 1), False):
            return super().call(inputs)
        kernel, rate = tf.cast(self.weights[0], inputs.dtype), self.dilation_rate[0]
        return depthwise_conv(inputs, kernel, rate, rate if self.padding == "same" else 0)


def depthwise_conv(x: tf.Tensor, kernel: tf.Tensor, rate: int, border: int) -> tf.Tensor:
    """Convolves each channel with its own 3x3 kernel.

    Args:
      x: [B, H, W, C] float.
      kernel: [3, 3, C, 1] of the same type.
      rate: pixels between the taps.
      border: width in pixels of the zeros around the input.

    Returns:
      [B, H + 2 (border - rate), W + 2 (border - rate), C] of the same type. Its gradient for the
      kernel is summed in float32.
    """

    @tf.custom_gradient
    def run(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            slopes = tf.cast(upstream, tf.float32)
            taps = (tf.cast(tap, tf.float32) for tap in _taps(x, rate, border))
            sums = tf.stack([tf.reduce_sum(tap * slopes, [0, 1, 2]) for tap in taps])
            of_kernel = tf.cast(tf.reshape(sums, tf.shape(kernel)), kernel.dtype)
            of_x = _weighted(_taps(upstream, rate, 2 * rate - border), kernel[::-1, ::-1])
            return of_x, of_kernel

        return _weighted(_taps(x, rate, border), kernel), gradient

    return run(x, kernel)


def _taps(x: tf.Tensor, rate: int, border: int) -> list[tf.Tensor]:
    """The nine maps that a 3x3 kernel sees of [B, H, W, C], row by row."""
    padded = tf.pad(x, [[0, 0], [border, border], [border, border], [0, 0]])
    height, width = (tf.shape(padded)[axis] - 2 * rate for axis in (1, 2))
    starts = [(i * rate, j * rate) for i in range(3) for j in range(3)]
    return [padded[:, top : top + height, left : left + width] for top, left in starts]


def _weighted(taps: list[tf.Tensor], kernel: tf.Tensor) -> tf.Tensor:
    weights = tf.unstack(tf.reshape(kernel, [9, -1]))
    return tf.add_n([tap * weight for tap, weight in zip(taps, weights, strict=True)])
