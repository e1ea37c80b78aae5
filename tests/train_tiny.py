"""train_main.py with a tiny encoder in place of MobileNetV2; the rest of the network is real.

It has every kind of layer of the decoder (separable and dilated convolutions, image pooling,
dropout) and a tenth of the layers, so a step is compiled in seconds.
"""

import sys

from old_versions.tiny import tiny_backbone

import train_main
from mapseg.model import deeplab
from mapseg.model.blocks import conv
from mapseg.model.encoders import Encoder, build_encoder
from mapseg.model.layers import Normalization


def build_tiny_encoder(config):
    if config.encoder != "mobilenet_v2":
        return build_encoder(config)
    return Encoder(tiny_backbone(config, conv), Normalization((127.5, 127.5, 127.5), 127.5))


if __name__ == "__main__":
    deeplab.build_encoder = build_tiny_encoder
    sys.exit(train_main.main([*sys.argv, "--compile_cache_dir="]))
