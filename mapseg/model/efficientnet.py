"""EfficientNet-Lite: EfficientNet with ReLU6 and without squeeze-and-excitation.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
Table 1. The Lite models (Liu 2020) scale neither the stem nor the depth of the first and the last
stage.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from mapseg.config import ModelConfig
from mapseg.model.blocks import conv, depthwise


@dataclass(frozen=True)
class _Stage:
    """Blocks of one kind; only the first has the stride."""

    blocks: int
    channels: int
    kernel_px: int = 3
    stride: int = 1
    expansion: int = 6


_STEM_CHANNELS = 32
_STAGES = (
    _Stage(1, 16, expansion=1),
    _Stage(2, 24, stride=2),
    _Stage(2, 40, kernel_px=5, stride=2),
    _Stage(3, 80, stride=2),
    _Stage(3, 112, kernel_px=5),
    _Stage(4, 192, kernel_px=5, stride=2),
    _Stage(1, 320),
)
_WIDTH_AND_DEPTH = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}
_RELU_MAX = 6.0


def build_efficientnet_lite(config: ModelConfig) -> keras.Model:
    """Builds EfficientNet-Lite up to its last block, without the convolution to 1280 channels.

    The stride-4 features are the output of the last block at this stride, not its expansion in the
    next block: the expansion has no more information, but six times the channels and so six times
    the work in the decoder.

    Args:
      config: the encoder's name, output stride and batch-norm momentum.

    Returns:
      [B, H, W, 3] float -> (features at stride 4, features at the output stride). The layers are
      in the order of the published weights.
    """
    norm = {"momentum": config.batch_norm_momentum, "epsilon": 1e-3}
    image = keras.Input((None, None, 3), name="encoder_input")
    x = conv(image, "stem", _STEM_CHANNELS, 3, norm=norm, stride=2, relu_max=_RELU_MAX)
    stride, rate, low_level = 2, 1, None
    for number, block in enumerate(_blocks(*_WIDTH_AND_DEPTH[config.encoder])):
        # At the output stride, a block's stride becomes the dilation of the blocks after it.
        dilate = stride == config.output_stride
        x = _add_block(x, f"block{number}", block, 1 if dilate else block.stride, rate, norm)
        if dilate:
            rate *= block.stride
        else:
            stride *= block.stride
        if stride == 4:
            low_level = x
    return keras.Model(image, [low_level, x], name=config.encoder)


def _blocks(width: float, depth: float) -> Iterator[_Stage]:
    """Yields the blocks of a scaled network, each as a stage of one block."""
    for stage in _STAGES:
        fixed_depth = stage in (_STAGES[0], _STAGES[-1])
        channels = _rounded(stage.channels * width)
        for number in range(stage.blocks if fixed_depth else math.ceil(stage.blocks * depth)):
            stride = stage.stride if number == 0 else 1
            yield _Stage(1, channels, stage.kernel_px, stride, stage.expansion)


def _rounded(channels: float) -> int:
    # To a multiple of 8. EfficientNet rounds up if that loses over 10 %, which never happens here.
    return int(channels + 4) // 8 * 8


def _add_block(
    x: Any, scope: str, block: _Stage, stride: int, rate: int, norm: dict[str, float]
) -> Any:
    """Adds an inverted residual block; `stride` and `rate` replace the block's stride."""
    skip, channels = x, x.shape[-1]
    if block.expansion > 1:
        expanded = channels * block.expansion
        x = conv(x, f"{scope}-expand", expanded, norm=norm, relu_max=_RELU_MAX)
    x = depthwise(
        x,
        f"{scope}-depthwise",
        block.kernel_px,
        norm=norm,
        stride=stride,
        rate=rate,
        relu_max=_RELU_MAX,
    )
    x = conv(x, f"{scope}-project", block.channels, norm=norm, relu=False)
    if block.stride == 1 and block.channels == channels:
        x = keras.layers.Add(name=f"{scope}-add")([x, skip])
    return x
