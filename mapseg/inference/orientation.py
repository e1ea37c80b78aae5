"""Which way up a photograph is, by its EXIF data: TensorFlow operations alone, for the export.

OpenCV turns images by the same tag where frames are read. TensorFlow's decoders ignore it.
"""

import tensorflow as tf

_TAG = 0x0112  # Orientation
_SHORT = 3
_JPEG_START, _PNG_START = [0xFF, 0xD8, 0xFF], [0x89, 0x50, 0x4E, 0x47]
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_EXIF = [ord(c) for c in "Exif\0\0"]
_PNG_EXIF, _PNG_DATA = ([ord(c) for c in kind] for kind in ("eXIf", "IDAT"))


def upright(image: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors an image as the EXIF data of its file say.

    Args:
      image: [H, W, C], as decoded.
      encoded: [] string, the JPEG or PNG.

    Returns:
      [H, W, C] or [W, H, C].
    """
    turn = read_orientation(encoded) - 1
    # CIPA DC-008, Orientation: 1 as it is, 2 mirrored, 3 turned by 180 degrees, 4 upside down,
    # 5 transposed, 6 turned clockwise, 7 transversed, 8 turned counterclockwise.
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
      [] int32, 1 to 8; 1 where the file has none, or EXIF data that cannot be read.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = tf.constant(-1)  # of the TIFF data
    if _holds(data, 0, _JPEG_START):
        start = _find_in_jpeg(data)
    elif _holds(data, 0, _PNG_START):
        start = _find_in_png(data)
    orientation = tf.constant(1)
    if start >= 0:
        big = _holds(data, start, [ord("M"), ord("M")])
        if big or _holds(data, start, [ord("I"), ord("I")]):
            orientation = _read_tag(data, start, big)
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)


def _find_in_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Walks through the segments before the image."""
    start, at = tf.constant(-1), tf.constant(2)
    while start < 0 and _number(data, at, 1, True) == 0xFF:
        marker = _number(data, at + 1, 1, True)
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == _START_OF_SCAN:
            at = tf.size(data)
        else:
            if marker == _APP1 and _holds(data, at + 4, _EXIF):
                start = at + 10
            at += 2 + _number(data, at + 2, 2, True)
    return start


def _find_in_png(data: tf.Tensor) -> tf.Tensor:
    """Walks through the chunks before and after the image."""
    start, at = tf.constant(-1), tf.constant(8)
    while start < 0 and at > 0 and at + 8 < tf.size(data):
        if _holds(data, at + 4, _PNG_EXIF):
            start = at + 8
        length = _number(data, at, 4, True)
        at = at + 12 + length if length >= 0 else tf.constant(-1)
    return start


def _read_tag(data: tf.Tensor, start: tf.Tensor, big: tf.Tensor) -> tf.Tensor:
    """Looks for the tag in the first directory of TIFF data."""
    value = tf.constant(1)
    first = _number(data, start + 4, 4, big)
    at = start + first
    if first > 0 and first < tf.size(data) - start:
        for i in tf.range(_number(data, at, 2, big)):
            entry = at + 2 + 12 * i
            tag, kind = _number(data, entry, 2, big), _number(data, entry + 2, 2, big)
            if tag == _TAG and kind == _SHORT:
                value = _number(data, entry + 8, 2, big)
    return value


def _holds(data: tf.Tensor, at: int | tf.Tensor, wanted: list[int]) -> tf.Tensor:
    here = data[at : at + len(wanted)]
    return tf.size(here) == len(wanted) and tf.reduce_all(here == tf.constant(wanted, tf.uint8))


def _number(data: tf.Tensor, at: tf.Tensor, size: int, big: bool | tf.Tensor) -> tf.Tensor:
    """Reads an unsigned number of 1, 2 or 4 bytes as int32; 0 where the data end before."""
    digits = tf.cast(data[at : at + size], tf.int32)
    powers = tf.constant([256**i for i in reversed(range(size))], tf.int32)
    if tf.size(digits) < size:
        return tf.constant(0)
    return tf.reduce_sum(digits * (powers if big else powers[::-1]))
