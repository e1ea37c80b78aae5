"""Parses the headers of JPEG and PNG files with TensorFlow operations only, for the export."""

from collections.abc import Sequence

import tensorflow as tf

APP1 = 0xE1
_JPEG_START, _PNG_START = [0xFF, 0xD8, 0xFF], [0x89, 0x50, 0x4E, 0x47]
_START_OF_SCAN = 0xDA
# Start-of-frame markers; C4, C8 and CC are other segments.
_FRAMES = [0xC0 + i for i in range(16) if i not in (4, 8, 12)]
_COMPONENTS = 5  # offset of the number of channels in the frame header, after precision and size


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def read_jpeg_channels(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the number of channels of a JPEG, [] int32; 0 if it cannot be read."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = find_segment(data, _FRAMES)
    return read_number(data, start + _COMPONENTS, 1, True) if start >= 0 else tf.constant(0)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def is_animated(encoded: tf.Tensor) -> tf.Tensor:
    """Returns whether a file is a PNG with several frames, [] bool."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = find_chunk(data, "acTL")
    return start >= 0 and read_number(data, start, 4, True) > 1


def find_segment(data: tf.Tensor, markers: Sequence[int], prefix: Sequence[int] = ()) -> tf.Tensor:
    """Searches the segments of a JPEG before the image data.

    Args:
      data: [N] uint8, any file.
      markers: the markers to search for.
      prefix: the bytes that the segment must start with.

    Returns:
      [] int32, the offset of the content of the first matching segment; -1 if there is none.
    """
    content, at = tf.constant(-1), tf.constant(2)
    if not holds(data, 0, _JPEG_START):
        at = tf.size(data)
    while content < 0 and read_number(data, at, 1, True) == 0xFF:
        marker = read_number(data, at + 1, 1, True)
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == _START_OF_SCAN:
            at = tf.size(data)
        else:
            if tf.reduce_any(marker == markers) and holds(data, at + 4, prefix):
                content = at + 4
            at += 2 + read_number(data, at + 2, 2, True)
    return content


def find_chunk(data: tf.Tensor, kind: str) -> tf.Tensor:
    """Searches the chunks of a PNG, before and after the image data.

    Args:
      data: [N] uint8, any file.
      kind: the chunk type, four letters.

    Returns:
      [] int32, the offset of the content of the first matching chunk; -1 if there is none.
    """
    content, at = tf.constant(-1), tf.constant(8)
    if not holds(data, 0, _PNG_START):
        at = tf.constant(-1)
    while content < 0 and at > 0 and at + 8 < tf.size(data):
        if holds(data, at + 4, [ord(letter) for letter in kind]):
            content = at + 8
        length = read_number(data, at, 4, True)
        at = at + 12 + length if length >= 0 else tf.constant(-1)
    return content


def holds(data: tf.Tensor, at: int | tf.Tensor, expected: Sequence[int]) -> tf.Tensor:
    """Returns whether data, [N] uint8, have the expected bytes at an offset."""
    here = data[at : at + len(expected)]
    return tf.size(here) == len(expected) and tf.reduce_all(here == tf.constant(expected, tf.uint8))


def read_number(data: tf.Tensor, at: tf.Tensor, size: int, big: bool | tf.Tensor) -> tf.Tensor:
    """Reads an unsigned number of 1, 2 or 4 bytes as int32; 0 if the data end too early."""
    digits = tf.cast(data[at : at + size], tf.int32)
    powers = tf.constant([256**i for i in reversed(range(size))], tf.int32)
    if tf.size(digits) < size:
        return tf.constant(0)
    return tf.reduce_sum(digits * (powers if big else powers[::-1]))
