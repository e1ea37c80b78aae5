"""Convolutions in forms that XLA compiles to fast code.

Keras's layers call `tf.nn.convolution` and `tf.nn.depthwise_conv2d`. With dilation these move
pixels into the batch dimension and back, and XLA compiles that literally. For depthwise
convolutions XLA picks library kernels, which are slow. Here a dilated convolution is one
operation, and a depthwise one is a weighted sum of shifted copies in one pass over memory. Without
XLA both forms are slower or unsupported, so they are used only in training compiled by XLA.
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf


def use_forms_for_xla(layers: Iterable[keras.layers.Layer]) -> None:
    """Makes all layers that have a form for XLA use it in training."""
    for layer in layers:
        if hasattr(layer, "for_xla"):
            layer.for_xla = True


class Conv2D(keras.layers.Conv2D):
    """Keras's layer; with `for_xla`, a dilated convolution is one operation in training."""

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
    """Keras's layer; with `for_xla`, stride 1 is a sum of shifted products in training."""

    for_xla = False

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, C] float to [B, H', W', C]."""
        if not (self.for_xla and training) or tuple(self.strides) != (1, 1) or self.use_bias:
            return super().call(inputs)
        kernel, rate = tf.cast(self.weights[0], inputs.dtype), self.dilation_rate[0]
        reach = rate * (self.kernel_size[0] // 2)
        return depthwise_conv(inputs, kernel, rate, reach if self.padding == "same" else 0)


def depthwise_conv(x: tf.Tensor, kernel: tf.Tensor, rate: int, border: int) -> tf.Tensor:
    """Convolves each channel with its own kernel.

    Args:
      x: [B, H, W, C] float.
      kernel: [k, k, C, 1] of the same type, k odd.
      rate: distance between taps in pixels.
      border: width in pixels of the zeros around the input.

    Returns:
      [B, H + 2 border - (k - 1) rate, W + 2 border - (k - 1) rate, C] of the same type. The
      gradient of the kernel is summed in float32.
    """
    taps, span = kernel.shape[0], (kernel.shape[0] - 1) * rate

    @tf.custom_gradient
    def run(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            slopes = tf.cast(upstream, tf.float32)
            maps = (tf.cast(tap, tf.float32) for tap in _taps(x, taps, rate, border))
            sums = tf.stack([tf.reduce_sum(tap * slopes, [0, 1, 2]) for tap in maps])
            kernel_gradient = tf.cast(tf.reshape(sums, tf.shape(kernel)), kernel.dtype)
            shifted = _taps(upstream, taps, rate, span - border)
            return _weighted_sum(shifted, kernel[::-1, ::-1]), kernel_gradient

        return _weighted_sum(_taps(x, taps, rate, border), kernel), gradient

    return run(x, kernel)


def _taps(x: tf.Tensor, taps: int, rate: int, border: int) -> list[tf.Tensor]:
    """Returns the shifted maps that a taps x taps kernel reads from [B, H, W, C], row by row."""
    padded = tf.pad(x, [[0, 0], [border, border], [border, border], [0, 0]])
    height, width = (tf.shape(padded)[axis] - (taps - 1) * rate for axis in (1, 2))
    starts = [(i * rate, j * rate) for i in range(taps) for j in range(taps)]
    return [padded[:, top : top + height, left : left + width] for top, left in starts]


def _weighted_sum(taps: list[tf.Tensor], kernel: tf.Tensor) -> tf.Tensor:
    weights = tf.unstack(tf.reshape(kernel, [len(taps), -1]))
    return tf.add_n([tap * weight for tap, weight in zip(taps, weights, strict=True)])
