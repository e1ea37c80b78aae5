"""Finds parts of JPEG and PNG files: TensorFlow operations alone, for the export."""

from collections.abc import Sequence

import tensorflow as tf

APP1 = 0xE1
_JPEG_START, _PNG_START = [0xFF, 0xD8, 0xFF], [0x89, 0x50, 0x4E, 0x47]
_START_OF_SCAN = 0xDA
# Starts of frames; between them C4, C8 and CC are of other segments.
_FRAMES = [0xC0 + i for i in range(16) if i not in (4, 8, 12)]
_COMPONENTS = 5  # of a frame's fields the number of channels, behind precision and size


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def read_jpeg_channels(encoded: tf.Tensor) -> tf.Tensor:
    """Returns how many channels a JPEG has, [] int32; 0 where that cannot be read."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = find_segment(data, _FRAMES)
    return read_number(data, start + _COMPONENTS, 1, True) if start >= 0 else tf.constant(0)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def is_animated(encoded: tf.Tensor) -> tf.Tensor:
    """Tells whether a file is a PNG of several frames, [] bool."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = find_chunk(data, "acTL")
    return start >= 0 and read_number(data, start, 4, True) > 1


def find_segment(data: tf.Tensor, markers: Sequence[int], prefix: Sequence[int] = ()) -> tf.Tensor:
    """Walks through the segments of a JPEG before the image.

    Args:
      data: [N] uint8, any file.
      markers: the kinds of segments looked for.
      prefix: what the segment must begin with.

    Returns:
      [] int32, where the content of the first such segment begins; -1 without one.
    """
    found, at = tf.constant(-1), tf.constant(2)
    if not holds(data, 0, _JPEG_START):
        at = tf.size(data)
    while found < 0 and read_number(data, at, 1, True) == 0xFF:
        marker = read_number(data, at + 1, 1, True)
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == _START_OF_SCAN:
            at = tf.size(data)
        else:
            if tf.reduce_any(marker == markers) and holds(data, at + 4, prefix):
                found = at + 4
            at += 2 + read_number(data, at + 2, 2, True)
    return found


def find_chunk(data: tf.Tensor, kind: str) -> tf.Tensor:
    """Walks through the chunks of a PNG, before and after the image.

    Args:
      data: [N] uint8, any file.
      kind: of the chunk, four letters.

    Returns:
      [] int32, where the content of the first such chunk begins; -1 without one.
    """
    found, at = tf.constant(-1), tf.constant(8)
    if not holds(data, 0, _PNG_START):
        at = tf.constant(-1)
    while found < 0 and at > 0 and at + 8 < tf.size(data):
        if holds(data, at + 4, [ord(letter) for letter in kind]):
            found = at + 8
        length = read_number(data, at, 4, True)
        at = at + 12 + length if length >= 0 else tf.constant(-1)
    return found


def holds(data: tf.Tensor, at: int | tf.Tensor, wanted: Sequence[int]) -> tf.Tensor:
    """Tells whether data, [N] uint8, have these bytes at a place."""
    here = data[at : at + len(wanted)]
    return tf.size(here) == len(wanted) and tf.reduce_all(here == tf.constant(wanted, tf.uint8))


def read_number(data: tf.Tensor, at: tf.Tensor, size: int, big: bool | tf.Tensor) -> tf.Tensor:
    """Reads an unsigned number of 1, 2 or 4 bytes as int32; 0 where the data end before."""
    digits = tf.cast(data[at : at + size], tf.int32)
    powers = tf.constant([256**i for i in reversed(range(size))], tf.int32)
    if tf.size(digits) < size:
        return tf.constant(0)
    return tf.reduce_sum(digits * (powers if big else powers[::-1]))
