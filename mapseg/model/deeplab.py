"""DeepLabv3+: uint8 image -> float32 logits at the image's own size.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", with the layers, names and padding of TF DeepLab. The input is padded at the bottom
and right to a multiple of the output stride plus one. Sample i of a feature map of stride s then
lies on pixel i * s, so every up-sampling interpolates at exact positions, and the padding never
reaches the output. An encoder that has its own context module is used without the pyramid.
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

    Weights that are not loaded are random, and determined by `keras.utils.set_random_seed`.

    Args:
      config: the network, and the encoder's initial weights.
      num_classes: number of logits per pixel.
      precision: `float32`, `mixed_float16` or `mixed_bfloat16`; variables, logits and image
        pooling are always float32.
      dropout_seed: returns the [2] int32 seed of a step's dropout; needed only for training.

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
        # Initialized as in Glorot and Bengio (2010). TF DeepLab's kernel starts near zero (stddev
        # 0.01), so that at first hardly any gradient reaches the features.
        x = keras.layers.Conv2D(num_classes, 1, dtype="float32", name="logits-semantic")(x)
        x = Upsample(LOW_LEVEL_STRIDE, dtype="float32", name="logits-upsample")([x, image])
        return keras.Model(image, x, name="deeplabv3plus")


class Parts(NamedTuple):
    """The parts of the network of `build_model`, without its last up-sampling.

    Attributes:
      normalize: the first layer.
      encoder: the encoder, without nested models.
      features: the decoder's inputs from the encoder, as symbolic tensors.
      logits: [B, h, w, C] at stride 4, as a symbolic tensor.
      stride: distance between neighbouring logits in pixels.
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
    first_user = "aspp0" if "aspp0" in names else "concat_projection-dropout"
    (encoder,) = (x for x in model.layers if isinstance(x, keras.Model))
    return Parts(
        model.get_layer("normalize"),
        encoder,
        [model.get_layer(n).input for n in ("decoder-feature_projection0", first_user)],
        model.get_layer("logits-semantic").output,
        model.get_layer("logits-upsample").factor,
    )


def coarse_model(
    model: keras.Model, *, recompute: bool = False
) -> tuple[Callable[[tf.Tensor], tf.Tensor], int]:
    """Returns the training-mode network without its last up-sampling, and the up-sampling factor.

    The loss does the up-sampling itself: see `losses.make_loss`.

    Args:
      model: from `build_model`.
      recompute: recompute the encoder's activations in the backward pass.
    """
    if not recompute:
        coarse, stride = without_upsampling(model)
        return lambda image: coarse(image, training=True), stride
    parts = split_model(model)
    encoder, decoder = recomputed(parts.encoder), keras.Model(parts.features, parts.logits)
    return lambda image: decoder(encoder(parts.normalize(image)), training=True), parts.stride


@contextmanager
def _dtype_policy(precision: str) -> Iterator[None]:
    """Sets the precision of all layers built inside the context."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(precision)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def _pyramid(x: Any, config: ModelConfig, norm: dict[str, float]) -> Any:
    """Combines features at several scales and over the whole image (ASPP)."""
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
    """Refines features with the encoder's stride-4 features."""
    channels = config.decoder_channels
    low_level = conv(low_level, "decoder-feature_projection0", _LOW_LEVEL_CHANNELS, norm=norm)
    factor = config.output_stride // LOW_LEVEL_STRIDE
    x = Upsample(factor, name="decoder-upsample")([x, low_level])
    x = keras.layers.Concatenate(name="decoder-concat")([x, low_level])
    x = separable_conv(x, "decoder-decoder_conv0", channels, norm=norm)
    return separable_conv(x, "decoder-decoder_conv1", channels, norm=norm)
