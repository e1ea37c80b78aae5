"""DeepLabv3+: uint8 image -> float32 logits at the image's own size.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", with the layers, names and paddings of TF DeepLab. The input is padded at bottom and
right to a multiple of the output stride plus one. Sample i of a feature map of stride s then lies
on pixel i * s, so every up-sampling reads between samples at exactly known places, and the padding
is never up-sampled. An encoder with a context module of its own goes without the pyramid.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mapseg.config import ModelConfig
from mapseg.model.blocks import conv, separable_conv
from mapseg.model.encoders import LOW_LEVEL_STRIDE, build_encoder
from mapseg.model.layers import Normalize, StatelessDropout
from mapseg.model.recompute import recomputed
from mapseg.model.resampling import Upsample

_LOW_LEVEL_CHANNELS = 48
_ATROUS_RATES = (6, 12, 18)  # at output stride 16


def build_model(
    config: ModelConfig,
    num_classes: int,
    *,
    precision: str = "float32",
    dropout_seed: Callable[[], tf.Tensor] | None = None,
) -> keras.Model:
    """Builds DeepLabv3+.

    The weights that are not loaded are random; `keras.utils.set_random_seed` decides them.

    Args:
      config: what to build, and what the encoder starts from.
      num_classes: how many logits a pixel gets.
      precision: `float32`, `mixed_float16` or `mixed_bfloat16`; variables, logits and image
        pooling are float32 in all.
      dropout_seed: gives the [2] int32 seed of a step's dropout; needed for training only.

    Returns:
      A model from [B, H, W, 3] uint8 RGB of any size to [B, H, W, num_classes] float32 logits.

    Raises:
      FileNotFoundError, ValueError: see `build_encoder`.
    """
    with _dtype_policy(precision):
        encoder = build_encoder(config)
        norm = {"momentum": config.batch_norm_momentum, "epsilon": 1e-5}
        image = keras.Input((None, None, 3), dtype="uint8", name="image")
        x = Normalize(encoder.normalization, config.output_stride, name="normalize")(image)
        low_level, x = encoder.model(x)
        if not encoder.has_context:
            x = _pyramid(x, config, norm)
        x = StatelessDropout(config.dropout, dropout_seed, name="concat_projection-dropout")(x)
        x = _decoder(x, low_level, config, norm)
        # Its kernel starts by Glorot and Bengio (2010), not near zero as TF DeepLab's does (0.01):
        # there next to nothing of the loss reaches the features at first.
        x = keras.layers.Conv2D(num_classes, 1, dtype="float32", name="logits-semantic")(x)
        x = Upsample(LOW_LEVEL_STRIDE, dtype="float32", name="logits-upsample")([x, image])
        return keras.Model(image, x, name="deeplabv3plus")


class Parts(NamedTuple):
    """The network of `build_model` before its last up-sampling, cut where only a few tensors pass.

    Attributes:
      normalize: the first layer.
      encoder: a network without nested ones.
      features: what the decoder takes of the encoder, as symbolic tensors.
      logits: [B, h, w, C] at stride 4, as a symbolic tensor.
      stride: pixels from a logit to the next.
    """

    normalize: Normalize
    encoder: keras.Model
    features: list[Any]
    logits: Any
    stride: int


def without_upsampling(model: keras.Model) -> tuple[keras.Model, int]:
    """Returns the network of `build_model` up to its coarse logits, and their stride in pixels."""
    coarse = keras.Model(model.input, model.get_layer("logits-semantic").output)
    return coarse, model.get_layer("logits-upsample").factor


def split_model(model: keras.Model) -> Parts:
    """Splits the network of `build_model` into its parts, which share its weights."""
    names = {layer.name for layer in model.layers}
    user = "aspp0" if "aspp0" in names else "concat_projection-dropout"
    (encoder,) = (x for x in model.layers if isinstance(x, keras.Model))
    return Parts(
        model.get_layer("normalize"),
        encoder,
        [model.get_layer(n).input for n in ("decoder-feature_projection0", user)],
        model.get_layer("logits-semantic").output,
        model.get_layer("logits-upsample").factor,
    )


def coarse_model(
    model: keras.Model, *, recompute: bool = False
) -> tuple[Callable[[tf.Tensor], tf.Tensor], int]:
    """Returns the network in training without its last up-sampling, and the factor of that.

    The loss up-samples by itself: see `losses.make_loss`.

    Args:
      model: from `build_model`.
      recompute: compute the encoder's activations again for the gradient.
    """
    if not recompute:
        coarse, stride = without_upsampling(model)
        return lambda image: coarse(image, training=True), stride
    parts = split_model(model)
    encoder, decoder = recomputed(parts.encoder), keras.Model(parts.features, parts.logits)
    return lambda image: decoder(encoder(parts.normalize(image)), training=True), parts.stride


@contextmanager
def _dtype_policy(precision: str) -> Iterator[None]:
    """Makes a precision that of all layers built inside."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(precision)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def _pyramid(x: Any, config: ModelConfig, norm: dict[str, float]) -> Any:
    """Looks at features at several scales and over the whole image (ASPP)."""
    channels = config.decoder_channels
    pooled = keras.layers.GlobalAveragePooling2D(
        keepdims=True, dtype="float32", name="image_pooling-mean"
    )(x)
    pooled = conv(pooled, "image_pooling", channels, norm=norm)
    branches = [
        Upsample(1, name="image_pooling-upsample")([pooled, x]),
        conv(x, "aspp0", channels, norm=norm),
    ]
    for place, base_rate in enumerate(_ATROUS_RATES, start=1):
        rate = base_rate * 16 // config.output_stride
        branches.append(separable_conv(x, f"aspp{place}", channels, norm=norm, rate=rate))
    x = keras.layers.Concatenate(name="aspp-concat")(branches)
    return conv(x, "concat_projection", channels, norm=norm)


def _decoder(x: Any, low_level: Any, config: ModelConfig, norm: dict[str, float]) -> Any:
    """Refines features with those of the encoder at stride 4."""
    channels = config.decoder_channels
    low_level = conv(low_level, "decoder-feature_projection0", _LOW_LEVEL_CHANNELS, norm=norm)
    factor = config.output_stride // LOW_LEVEL_STRIDE
    x = Upsample(factor, name="decoder-upsample")([x, low_level])
    x = keras.layers.Concatenate(name="decoder-concat")([x, low_level])
    x = separable_conv(x, "decoder-decoder_conv0", channels, norm=norm)
    return separable_conv(x, "decoder-decoder_conv1", channels, norm=norm)
