"""Xception-65: Xception with more and wider blocks, and strides instead of pooling.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", Figure 4, after Dai et al. 2017.
"""

from dataclasses import dataclass
from typing import Any

import keras

from mapseg.config import ModelConfig
from mapseg.model.blocks import conv, separable_conv


@dataclass(frozen=True)
class _Block:
    """Units of three separable convolutions; the stride is that of the last convolution."""

    name: str
    channels: tuple[int, int, int]
    skip: str  # conv, sum or none
    stride: int = 1
    units: int = 1


_XCEPTION65 = (
    _Block("entry_flow-block1", (128, 128, 128), "conv", stride=2),
    _Block("entry_flow-block2", (256, 256, 256), "conv", stride=2),
    _Block("entry_flow-block3", (728, 728, 728), "conv", stride=2),
    _Block("middle_flow-block1", (728, 728, 728), "sum", units=16),
    _Block("exit_flow-block1", (728, 1024, 1024), "conv", stride=2),
    _Block("exit_flow-block2", (1536, 1536, 2048), "none"),
)
_XCEPTION65_LOW_LEVEL = "xception_65-entry_flow-block2-unit_1-xception_module-separable_conv2"


def build_xception65(config: ModelConfig) -> keras.Model:
    """Builds Xception-65 as in TF DeepLab.

    The layers have the names of TF DeepLab's checkpoints, with `-` for `/`. As there, the stride-4
    features are the second separable convolution of the second block, before its ReLU.

    Args:
      config: the output stride and the batch-norm momentum.

    Returns:
      [B, H, W, 3] float -> (features at stride 4, features at the output stride).
    """
    norm = {"momentum": config.batch_norm_momentum, "epsilon": 1e-3}
    image = keras.Input((None, None, 3), name="encoder_input")
    x = conv(image, "xception_65-entry_flow-conv1_1", 32, 3, norm=norm, stride=2)
    x = conv(x, "xception_65-entry_flow-conv1_2", 64, 3, norm=norm)
    stride, rate = 2, 1
    for block in _XCEPTION65:
        # At the output stride, a block's stride becomes the dilation of the blocks after it.
        dilate = stride == config.output_stride
        for unit in range(1, block.units + 1):
            scope = f"xception_65-{block.name}-unit_{unit}-xception_module"
            x = _xception_unit(x, scope, block, 1 if dilate else block.stride, rate, norm)
        if dilate:
            rate *= block.stride
        else:
            stride *= block.stride
    model = keras.Model(image, x)
    low_level = model.get_layer(f"{_XCEPTION65_LOW_LEVEL}_pointwise-BatchNorm").output
    return keras.Model(image, [low_level, x], name=config.encoder)


def _xception_unit(
    x: Any, scope: str, block: _Block, stride: int, rate: int, norm: dict[str, float]
) -> Any:
    # ReLUs precede the separable convolutions; in the last block, without skip, they are inside.
    inside = block.skip == "none"
    residual = x
    for place, channels in enumerate(block.channels, start=1):
        name = f"{scope}-separable_conv{place}"
        if not inside:
            residual = keras.layers.ReLU(name=f"{name}-relu")(residual)
        residual = separable_conv(
            residual,
            name,
            channels,
            norm=norm,
            stride=stride if place == 3 else 1,
            rate=rate,
            relu=inside,
        )
    if block.skip == "none":
        return residual
    if block.skip == "conv":
        x = conv(x, f"{scope}-shortcut", block.channels[-1], norm=norm, stride=stride, relu=False)
    return keras.layers.Add(name=f"{scope}-add")([residual, x])
