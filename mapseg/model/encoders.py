"""Encoders: backbones that return features at stride 4 and at the output stride.

Strides beyond the output stride become dilation, so the features are those of the original
network, only denser. Feature i of stride s is centred on pixel i * s for every input size that is
a multiple of the output stride plus one.
"""

from dataclasses import dataclass

import keras

from mapseg.config import ModelConfig
from mapseg.model.ddrnet import build_ddrnet23_slim
from mapseg.model.efficientnet import build_efficientnet_lite
from mapseg.model.keras_applications import build_mobilenet_v2, build_resnet50
from mapseg.model.layers import Normalization
from mapseg.model.pretrained import find_weights, load_weights
from mapseg.model.xception import build_xception65

LOW_LEVEL_STRIDE = 4


@dataclass(frozen=True)
class Encoder:
    """A backbone.

    Attributes:
      model: [B, H, W, 3] float, already normalized -> (features at stride 4, features at the
        output stride).
      normalization: the normalization that its input needs.
      has_context: whether its last features already contain global context.
    """

    model: keras.Model
    normalization: Normalization
    has_context: bool = False


_TO_UNIT_RANGE = Normalization((127.5, 127.5, 127.5), 127.5)
_TO_UNIT_RANGE_127 = Normalization((127.0, 127.0, 127.0), 128.0)
_IMAGENET_MEAN_BGR = Normalization((123.68, 116.779, 103.939), 1.0, bgr=True)


def build_encoder(config: ModelConfig) -> Encoder:
    """Builds an encoder and loads its initial weights.

    Args:
      config: the encoder's name, weights, output stride and batch-norm momentum. If a checkpoint
        will be loaded anyway, set `encoder_weights` to "none".

    Returns:
      The encoder, for inputs of any size.

    Raises:
      FileNotFoundError: the weights do not exist and cannot be downloaded.
      ValueError: the encoder has no such weights, or the file does not fit it.
    """
    weights_path = find_weights(config)
    if config.encoder == "xception65":
        encoder = Encoder(build_xception65(config), _TO_UNIT_RANGE)
    elif config.encoder.startswith("efficientnet_lite"):
        encoder = Encoder(build_efficientnet_lite(config), _TO_UNIT_RANGE_127)
    elif config.encoder == "ddrnet23_slim":
        encoder = Encoder(build_ddrnet23_slim(config), _TO_UNIT_RANGE, has_context=True)
    elif config.encoder == "resnet50":
        encoder = Encoder(build_resnet50(config), _IMAGENET_MEAN_BGR)
    else:
        encoder = Encoder(build_mobilenet_v2(config), _TO_UNIT_RANGE)
    if weights_path is not None:
        load_weights(encoder.model, weights_path)
    return encoder
