"""Rotates images according to their EXIF data with TensorFlow operations only, for the export.

OpenCV applies the same tag when inference reads frames. TensorFlow's decoders ignore it.
"""

import tensorflow as tf

from mapseg.inference.headers import APP1, find_chunk, find_segment, holds, read_number

_TAG = 0x0112  # Orientation
_SHORT = 3
_EXIF = [ord(c) for c in "Exif\0\0"]


def upright(image: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Rotates and mirrors an image according to the EXIF data of its file.

    Args:
      image: [H, W, C], as decoded.
      encoded: [] string, the JPEG or PNG.

    Returns:
      [H, W, C] or [W, H, C].
    """
    turn = read_orientation(encoded) - 1
    # CIPA DC-008, Orientation: the transform to apply. 1 none, 2 mirror, 3 rotate by 180 degrees,
    # 4 flip vertically, 5 transpose, 6 rotate clockwise, 7 transverse, 8 rotate counterclockwise.
    return tf.switch_case(
        turn,
        [
            lambda: image,
            lambda: image[:, ::-1],
            lambda: image[::-1, ::-1],
            lambda: image[::-1],
            lambda: tf.transpose(image, [1, 0, 2]),
            lambda: tf.transpose(image, [1, 0, 2])[:, ::-1],
            lambda: tf.transpose(image, [1, 0, 2])[::-1, ::-1],
            lambda: tf.transpose(image, [1, 0, 2])[::-1],
        ],
    )


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the EXIF orientation of a JPEG or PNG.

    Returns:
      [] int32, 1 to 8; 1 if the file has none or its EXIF data cannot be read.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = find_segment(data, [APP1], _EXIF)  # of the TIFF data
    if start >= 0:
        start += len(_EXIF)
    else:
        start = find_chunk(data, "eXIf")
    orientation = tf.constant(1)
    if start >= 0:
        big = holds(data, start, [ord("M"), ord("M")])
        if big or holds(data, start, [ord("I"), ord("I")]):
            orientation = _read_tag(data, start, big)
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)


def _read_tag(data: tf.Tensor, start: tf.Tensor, big: tf.Tensor) -> tf.Tensor:
    """Reads the tag from the first directory of TIFF data; 1 if it is missing."""
    value = tf.constant(1)
    first = read_number(data, start + 4, 4, big)
    at = start + first
    if first > 0 and first < tf.size(data) - start:
        for i in tf.range(read_number(data, at, 2, big)):
            entry = at + 2 + 12 * i
            tag, kind = read_number(data, entry, 2, big), read_number(data, entry + 2, 2, big)
            if tag == _TAG and kind == _SHORT:
                value = read_number(data, entry + 8, 2, big)
    return value
