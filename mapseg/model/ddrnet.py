"""DDRNet-23-slim: a real-time network with a fine and a coarse branch that exchange features.

Hong et al. 2021, "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of
Road Scenes", Figure 4 and Table 2. The fine branch stays at stride 8; the coarse one continues to
stride 64, where DAPPM adds context at several scales, like a pyramid. mapseg's decoder replaces
the paper's head, and there is no auxiliary loss on the fine branch.
"""

from collections.abc import Sequence
from typing import Any

import keras

from mapseg.config import ModelConfig
from mapseg.model.blocks import conv
from mapseg.model.convolutions import Conv2D
from mapseg.model.layers import BatchNormalization
from mapseg.model.resampling import Upsample, WindowMeans

_CHANNELS = 32  # at stride 4; doubled whenever the size is halved
_CONTEXT_CHANNELS = 128
_WINDOWS = ((5, 2), (9, 4), (17, 8))  # (window, stride) of DAPPM, in samples at stride 64

Norm = dict[str, float]


def build_ddrnet23_slim(config: ModelConfig) -> keras.Model:
    """Builds DDRNet-23-slim up to and including the first batch norm and ReLU of its head.

    The windows of its context module are clipped at the image border. The published code
    averages over the zeros beyond it as well, which makes means smaller in a crop than in a frame.

    Args:
      config: the batch-norm momentum; the output stride is always 8.

    Returns:
      [B, H, W, 3] float -> (features at stride 4, features at stride 8 with global context).
    """
    norm = {"momentum": config.batch_norm_momentum, "epsilon": 1e-5}
    image = keras.Input((None, None, 3), name="encoder_input")
    x = conv(image, "conv1-first", _CHANNELS, 3, norm=norm, stride=2)
    x = conv(x, "conv1-second", _CHANNELS, 3, norm=norm, stride=2)
    low_level = x = _relu(_blocks(x, "conv2", _CHANNELS, norm))
    x = _relu(_blocks(x, "conv3", 2 * _CHANNELS, norm, stride=2))

    fine = _blocks(x, "conv4-fine", 2 * _CHANNELS, norm)
    coarse = _blocks(x, "conv4-coarse", 4 * _CHANNELS, norm, stride=2)
    fine, coarse = _exchange(fine, coarse, "conv4-exchange", [4 * _CHANNELS], norm)

    fine = _blocks(fine, "conv5-fine", 2 * _CHANNELS, norm)
    coarse = _blocks(coarse, "conv5-coarse", 8 * _CHANNELS, norm, stride=2)
    down_channels = [4 * _CHANNELS, 8 * _CHANNELS]
    fine, coarse = _exchange(fine, coarse, "conv5-exchange", down_channels, norm)

    fine = _bottleneck(fine, "conv6-fine", 4 * _CHANNELS, norm)
    coarse = _bottleneck(coarse, "conv6-coarse", 16 * _CHANNELS, norm, stride=2)
    coarse = _context(coarse, 4 * _CHANNELS, norm)
    coarse = Upsample(8, name="context-upsample")([coarse, fine])
    x = keras.layers.Add(name="head-add")([fine, coarse])
    x = _relu(BatchNormalization(**norm, name="head-BatchNorm")(x))
    return keras.Model(image, [low_level, x], name=config.encoder)


def _blocks(x: Any, scope: str, channels: int, norm: Norm, stride: int = 1) -> Any:
    """Adds two residual blocks, without the ReLU after the second."""
    x = _relu(_block(x, f"{scope}-block1", channels, norm, stride))
    return _block(x, f"{scope}-block2", channels, norm)


def _block(x: Any, scope: str, channels: int, norm: Norm, stride: int = 1) -> Any:
    y = conv(x, f"{scope}-conv1", channels, 3, norm=norm, stride=stride)
    y = conv(y, f"{scope}-conv2", channels, 3, norm=norm, relu=False)
    return _add_shortcut(x, y, scope, norm, stride)


def _bottleneck(x: Any, scope: str, channels: int, norm: Norm, stride: int = 1) -> Any:
    y = conv(x, f"{scope}-conv1", channels // 2, norm=norm)
    y = conv(y, f"{scope}-conv2", channels // 2, 3, norm=norm, stride=stride)
    y = conv(y, f"{scope}-conv3", channels, norm=norm, relu=False)
    return _add_shortcut(x, y, scope, norm, stride)


def _add_shortcut(x: Any, y: Any, scope: str, norm: Norm, stride: int) -> Any:
    channels = y.shape[-1]
    if stride > 1 or x.shape[-1] != channels:
        x = conv(x, f"{scope}-shortcut", channels, norm=norm, stride=stride, relu=False)
    return keras.layers.Add(name=f"{scope}-add")([y, x])


def _exchange(
    fine: Any, coarse: Any, scope: str, down_channels: Sequence[int], norm: Norm
) -> tuple[Any, Any]:
    """Adds each branch to the other (equation 1); each stride-2 convolution halves the size."""
    down = _relu(fine)
    for step, channels in enumerate(down_channels, start=1):
        last = step == len(down_channels)
        down = conv(down, f"{scope}-down{step}", channels, 3, norm=norm, stride=2, relu=not last)
    up = conv(_relu(coarse), f"{scope}-up", fine.shape[-1], norm=norm, relu=False)
    up = Upsample(2 ** len(down_channels), name=f"{scope}-upsample")([up, fine])
    fine = keras.layers.Add(name=f"{scope}-fine")([fine, up])
    coarse = keras.layers.Add(name=f"{scope}-coarse")([coarse, down])
    return _relu(fine), _relu(coarse)


def _context(x: Any, channels: int, norm: Norm) -> Any:
    """Combines means over larger and larger windows (DAPPM, equation 2)."""
    means: list[tuple[keras.layers.Layer, int]] = [
        (WindowMeans(window, stride, name=f"context-means{window}"), stride)
        for window, stride in _WINDOWS
    ]
    image_mean = keras.layers.GlobalAveragePooling2D(
        keepdims=True, dtype="float32", name="context-mean"
    )
    scales = [_conv_after_norm(x, "context-scale0", _CONTEXT_CHANNELS, norm)]
    for place, (mean, stride) in enumerate([*means, (image_mean, 1)], start=1):
        y = _conv_after_norm(mean(x), f"context-scale{place}", _CONTEXT_CHANNELS, norm)
        y = Upsample(stride, name=f"context-upsample{place}")([y, x])
        y = keras.layers.Add(name=f"context-add{place}")([y, scales[-1]])
        scales.append(_conv_after_norm(y, f"context-process{place}", _CONTEXT_CHANNELS, norm, 3))
    y = keras.layers.Concatenate(name="context-concat")(scales)
    y = _conv_after_norm(y, "context-compression", channels, norm)
    shortcut = _conv_after_norm(x, "context-shortcut", channels, norm)
    return keras.layers.Add(name="context-add")([y, shortcut])


def _conv_after_norm(x: Any, scope: str, channels: int, norm: Norm, kernel_px: int = 1) -> Any:
    x = _relu(BatchNormalization(**norm, name=f"{scope}-BatchNorm")(x))
    return Conv2D(
        channels,
        kernel_px,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=scope,
    )(x)


def _relu(x: Any) -> Any:
    return keras.layers.ReLU()(x)
