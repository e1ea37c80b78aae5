"""Networks of `keras.applications`, with dilation for strides beyond the output stride."""

from typing import Any

import keras

from mapseg.config import ModelConfig
from mapseg.model.convolutions import Conv2D, DepthwiseConv2D
from mapseg.model.layers import BatchNormalization

# At a side of 128 + 1, keras.applications pads every strided convolution symmetrically, and the
# stride of a feature map follows from its size. At even or unknown sizes the padding is asymmetric,
# which shifts MobileNetV2's features by a pixel.
_SOURCE_SHAPE = (129, 129, 3)


def build_resnet50(config: ModelConfig) -> keras.Model:
    """Builds ResNet-50 (He et al. 2016) without its head.

    Args:
      config: the output stride and the batch-norm momentum.

    Returns:
      [B, H, W, 3] float -> (features at stride 4, features at the output stride).
    """
    source = keras.applications.ResNet50(include_top=False, weights=None, input_shape=_SOURCE_SHAPE)
    return _at_stride(source, ("conv2_block3_out", "conv5_block3_out"), config)


def build_mobilenet_v2(config: ModelConfig) -> keras.Model:
    """Builds MobileNetV2 (Sandler et al. 2018) without its head.

    As in TF DeepLab, it ends before the last convolution, to 1280 channels.

    Args:
      config: the output stride and the batch-norm momentum.

    Returns:
      [B, H, W, 3] float -> (features at stride 4, features at the output stride).
    """
    source = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=_SOURCE_SHAPE
    )
    return _at_stride(source, ("block_2_depthwise_relu", "block_16_project_BN"), config)


def _at_stride(source: keras.Model, outputs: tuple[str, str], config: ModelConfig) -> keras.Model:
    """Copies a `keras.applications` network, with dilation for strides beyond the output stride."""

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            settings["momentum"] = config.batch_norm_momentum
            return BatchNormalization.from_config(settings)
        if isinstance(layer, keras.layers.ZeroPadding2D):
            rate = max(1, _stride_of(layer.input) // config.output_stride)
            settings["padding"] = tuple((a * rate, b * rate) for a, b in settings["padding"])
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            # From the output: the size of the input may include padding.
            stride = _stride_of(layer.output)
            rate = max(1, stride // settings["strides"][0] // config.output_stride)
            if stride > config.output_stride:
                settings["strides"] = (1, 1)
            if settings["kernel_size"] != (1, 1):
                settings["dilation_rate"] = (rate, rate)
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            return (DepthwiseConv2D if depthwise else Conv2D).from_config(settings)
        return layer.__class__.from_config(settings)

    encoder = keras.Model(
        source.input, [source.get_layer(name).output for name in outputs], name=config.encoder
    )
    image = keras.Input((None, None, 3), name="encoder_input")
    return keras.models.clone_model(encoder, input_tensors=image, clone_function=convert)


def _stride_of(features: Any) -> int:
    return int((_SOURCE_SHAPE[0] - 1) // (features.shape[1] - 1))
