"""The whole job as one graph of plain operations: uint8 images in, ids at their own size out.

Converters to other formats know few operations: no loops, no scatter, no antialiased resizing. So
there are no tiles here, one scale, no mirror image, and images are resized by matrix products.
"""

from collections.abc import Callable

import tensorflow as tf

from mapseg.config import PredictConfig
from mapseg.inference.classes import interpolate
from mapseg.inference.scaling import base_scale, scaled_size
from mapseg.model.network import Network
from mapseg.model.resampling import resizing_matrix


def make_whole_job(
    network: Network, config: PredictConfig, long_side_px: int
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from images [B, H, W, 3] uint8 RGB to ids [B, H, W] uint8.

    The ids are those of a `Predictor` whose tiles hold the whole image, except for rounding. B, H
    and W may be unknown when the function is traced.

    Args:
      network: from `convertible_network`.
      config: of one scale, without flip; its tile size is ignored.
      long_side_px: long side of the images that the network was trained on, for `scale=auto`.
    """
    (factor,) = config.factors
    unscaled = config.scale != "auto" and float(config.scale) * factor == 1

    def segment(images: tf.Tensor) -> tf.Tensor:
        size = tf.shape(images)[1:3]
        scaled = size
        if not unscaled:
            scaled = scaled_size(size, base_scale(config, size, long_side_px) * factor)
            images = _resize(images, scaled)
        logits = network.logits(images)
        ratio = tf.cast(scaled, tf.float32) / tf.cast(size, tf.float32)
        for axis in range(2):  # pixel centres lie at half-integers at every scale
            centres = tf.range(tf.cast(size[axis], tf.float32)) + 0.5
            positions = (centres * ratio[axis] - 0.5) / network.stride
            logits = interpolate(logits, positions, axis + 1)
        return tf.cast(tf.argmax(logits, -1, tf.int32), tf.uint8)

    return segment


def _resize(images: tf.Tensor, scaled: tf.Tensor) -> tf.Tensor:
    """Resizes [B, H, W, 3] uint8 bilinearly, with antialiasing, to whole numbers in float32."""
    size = tf.shape(images)[1:3]
    rows, columns = (resizing_matrix(size[axis], scaled[axis]) for axis in range(2))
    channels_first = tf.transpose(tf.cast(images, tf.float32), [0, 3, 1, 2])
    resized = tf.matmul(rows, tf.matmul(channels_first, columns, transpose_b=True))
    return tf.round(tf.transpose(resized, [0, 2, 3, 1]))
