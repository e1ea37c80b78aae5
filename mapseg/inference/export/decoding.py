"""Decodes JPEG and PNG files as inference does, with TensorFlow operations only."""

import tensorflow as tf

from mapseg.data.encoded import JPEG
from mapseg.data.samples import decode_image
from mapseg.inference.headers import read_header
from mapseg.inference.orientation import upright
from mapseg.inference.reading import DEPTH_MESSAGE, SMALLEST_16_BIT_PEAK

MAX_PIXELS = 178_956_970  # Pillow's limit, which inference applies

_KIND = "a file must be a JPEG or PNG; got another kind. Remedy: save it as one of these"
_COMPLETE = "a JPEG or PNG must be complete; got a truncated file"
_SIZE = f"an image must have 1 to {MAX_PIXELS} pixels; got height x width "
_CMYK = (
    "a JPEG must be grey or RGB; got CMYK, which TensorFlow and inference convert differently. "
    "Remedy: save it as RGB"
)
_ANIMATED = "a PNG must hold one picture; got an animated one. Remedy: save each frame as a file"


def decode(encoded: tf.Tensor, name: tf.Tensor | str) -> tf.Tensor:
    """Decodes a JPEG or PNG as `read_image` does, for use in graphs.

    Args:
      encoded: [] string, any bytes.
      name: [] string, for the error message.

    Returns:
      [H, W, 3] uint8 RGB, upright.

    Raises:
      tf.errors.InvalidArgumentError: when the graph is executed, if the file is not a complete JPEG
        or PNG of one picture, is CMYK, has too many pixels, or has 16 bits and an ambiguous range.
    """
    is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
    is_jpeg = tf.strings.substr(encoded, 0, 3) == JPEG
    header = read_header(encoded)
    sides = tf.strings.reduce_join(tf.strings.as_string(header.size), separator=" x ")
    pixels = tf.reduce_prod(tf.cast(header.size, tf.int64))
    checks = [
        (is_png | is_jpeg, _KIND),
        (header.complete, _COMPLETE),
        ((tf.reduce_min(header.size) > 0) & (pixels <= MAX_PIXELS), _SIZE + sides),
        (header.channels < 4, _CMYK),
        (~header.animated, _ANIMATED),
    ]
    problem = tf.constant("")
    for passed, message in reversed(checks):  # the first one is the cause of the others
        problem = tf.where(passed, problem, message)
    with tf.control_dependencies([_assert(problem == "", name, problem)]):  # before the decoder's
        encoded = tf.identity(encoded)
    if is_png and tf.strings.substr(encoded, 24, 1) == b"\x10":  # bits per channel
        deep = tf.io.decode_png(encoded, channels=3, dtype=tf.uint16)
        peak = tf.reduce_max(tf.cast(deep, tf.int32))
        _assert(peak >= SMALLEST_16_BIT_PEAK, name, DEPTH_MESSAGE)
    return upright(decode_image(encoded), encoded)


def _assert(passed: tf.Tensor, name: tf.Tensor | str, problem: tf.Tensor | str) -> tf.Operation:
    return tf.debugging.Assert(passed, [tf.strings.join([name, ": ", problem])])
