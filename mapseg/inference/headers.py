"""Parses the headers of JPEG and PNG files with TensorFlow operations only, for the export."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

APP1 = 0xE1
_JPEG_START, _PNG_START = [0xFF, 0xD8, 0xFF], [0x89, 0x50, 0x4E, 0x47]
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Start-of-frame markers; C4, C8 and CC are other segments.
_FRAMES = [0xC0 + i for i in range(16) if i not in (4, 8, 12)]
# Offsets of height and width in a PNG, and of these and the channels in a JPEG's frame header.
_PNG_SIZE, _JPEG_SIZE, _COMPONENTS = (20, 16), (1, 3), 5
_CHECKSUM_BYTES = 4  # after the content of a chunk


class Header(NamedTuple):
    """What a JPEG or PNG states about itself.

    Attributes:
      size: [2] int32 (height, width) before it is turned upright. Both are 0 if they cannot be
        read; negative if they exceed 31 bits.
      channels: [] int32 of a JPEG; 0 if they cannot be read.
      animated: [] bool, whether a PNG has several frames.
      complete: [] bool, whether it has an end marker, which a truncated file lacks.
    """

    size: tf.Tensor
    channels: tf.Tensor
    animated: tf.Tensor
    complete: tf.Tensor


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def read_header(encoded: tf.Tensor) -> Header:
    """Parses a JPEG or PNG; of other bytes, the header has no size and is not complete."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    size, channels = tf.zeros([2], tf.int32), tf.constant(0)
    animated, complete = tf.constant(False), tf.constant(False)
    if holds(data, 0, _PNG_START):
        size = tf.stack([read_number(data, at, 4, True) for at in _PNG_SIZE])
        animation = find_chunk(data, "acTL")
        animated = animation >= 0 and read_number(data, animation, 4, True) > 1
        end = find_chunk(data, "IEND")
        complete = end >= 0 and end + _CHECKSUM_BYTES <= tf.size(data)
    else:
        frame = find_segment(data, _FRAMES)
        if frame >= 0:
            size = tf.stack([read_number(data, frame + at, 2, True) for at in _JPEG_SIZE])
            channels = read_number(data, frame + _COMPONENTS, 1, True)
        scan = find_segment(data, [_START_OF_SCAN])
        if scan >= 0:  # an embedded preview, which has an end of its own, is before it
            # In compressed data no 0xFF is followed by this byte.
            ends = (data[scan:-1] == 0xFF) & (data[scan + 1 :] == _END_OF_IMAGE)
            complete = tf.reduce_any(ends)
    return Header(size, channels, animated, complete)


def find_segment(data: tf.Tensor, markers: Sequence[int], prefix: Sequence[int] = ()) -> tf.Tensor:
    """Searches the segments of a JPEG up to the start of the image data.

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
        else:
            if tf.reduce_any(marker == markers) and holds(data, at + 4, prefix):
                content = at + 4
            length = read_number(data, at + 2, 2, True)
            at = tf.size(data) if marker == _START_OF_SCAN else at + 2 + length
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
