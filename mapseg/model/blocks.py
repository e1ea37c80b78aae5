"""Building blocks of the networks: convolutions with batch norm and ReLU."""

from typing import Any

import keras

from mapseg.model.convolutions import Conv2D, DepthwiseConv2D
from mapseg.model.layers import BatchNormalization


def conv(
    x: Any,
    scope: str,
    channels: int,
    kernel_px: int = 1,
    *,
    norm: dict[str, float],
    stride: int = 1,
    relu: bool = True,
    relu_max: float | None = None,
) -> Any:
    """Adds a convolution, batch norm and optional ReLU, named as in TF-Slim.

    Args:
      x: [B, H, W, C] float.
      scope: name of the convolution and prefix of the other layers' names.
      channels: number of output channels.
      kernel_px: side of the kernel, odd.
      norm: `momentum` and `epsilon` of the batch norm.
      stride: if greater than 1, the padding does not depend on the input size, so that output i
        is centred on input i * stride.
      relu: whether a ReLU follows.
      relu_max: maximum output of the ReLU, if any.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), channels] float.
    """
    x, padding = _pad(x, scope, kernel_px // 2, stride)
    x = Conv2D(
        channels,
        kernel_px,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=scope,
    )(x)
    return _norm_and_relu(x, scope, norm, relu, relu_max)


def depthwise(
    x: Any,
    scope: str,
    kernel_px: int = 3,
    *,
    norm: dict[str, float],
    stride: int = 1,
    rate: int = 1,
    relu: bool = True,
    relu_max: float | None = None,
) -> Any:
    """Adds a depthwise convolution, batch norm and optional ReLU.

    Args:
      x: [B, H, W, C] float.
      scope: name of the convolution and prefix of the other layers' names.
      kernel_px: side of the kernel, odd.
      norm: `momentum` and `epsilon` of the batch norm.
      stride: as in `conv`.
      rate: dilation.
      relu: whether a ReLU follows.
      relu_max: as in `conv`.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C] float.
    """
    x, padding = _pad(x, scope, kernel_px // 2 * rate, stride)
    x = DepthwiseConv2D(
        kernel_px,
        strides=stride,
        padding=padding,
        dilation_rate=rate,
        use_bias=False,
        depthwise_initializer=keras.initializers.TruncatedNormal(stddev=1 / kernel_px),
        name=scope,
    )(x)
    return _norm_and_relu(x, scope, norm, relu, relu_max)


def separable_conv(
    x: Any,
    scope: str,
    channels: int,
    *,
    norm: dict[str, float],
    stride: int = 1,
    rate: int = 1,
    relu: bool = True,
) -> Any:
    """Adds a depthwise 3x3 and a pointwise convolution, each followed by a batch norm.

    Args:
      x: [B, H, W, C] float.
      scope: prefix of the layers' names, before `_depthwise` and `_pointwise`.
      channels: number of output channels.
      norm: `momentum` and `epsilon` of the batch norms.
      stride: as in `conv`.
      rate: dilation of the depthwise convolution.
      relu: whether a ReLU follows each batch norm.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), channels] float.
    """
    x = depthwise(x, f"{scope}_depthwise", norm=norm, stride=stride, rate=rate, relu=relu)
    return conv(x, f"{scope}_pointwise", channels, norm=norm, relu=relu)


def _pad(x: Any, scope: str, border_px: int, stride: int) -> tuple[Any, str]:
    if stride == 1 or border_px == 0:
        return x, "same"
    return keras.layers.ZeroPadding2D(border_px, name=f"{scope}-pad")(x), "valid"


def _norm_and_relu(
    x: Any, scope: str, norm: dict[str, float], relu: bool, relu_max: float | None
) -> Any:
    x = BatchNormalization(**norm, name=f"{scope}-BatchNorm")(x)
    return keras.layers.ReLU(relu_max, name=f"{scope}-relu")(x) if relu else x
