"""Decodes a whole record, and checks that its fields agree and fit its class table."""

import zlib
from collections.abc import Collection, Sequence

import numpy as np

from data_prep.facts import SampleFacts, note_facts
from mapseg.data.encoded import JPEG, channel_bits, check_jpeg, check_single, open_image
from mapseg.data.samples import Sample, decode_image, parse_sample
from mapseg.data.tiles import Window, decode_window, fill_tiles, tile_grid
from mapseg.labels import VOID

_GREY_8_BIT = b"\x08\x00"  # depth and colour type in a PNG's header


def inspect_record(record: bytes, ids: Collection[int]) -> SampleFacts:
    """Decodes a whole record and returns its facts.

    Args:
      record: from `samples.encode_sample`, or from TF DeepLab, whose records have no tiles.
      ids: the class table's; a record without tiles may also have VOID, which TF DeepLab ignores.

    Returns:
      The facts, without an orientation.

    Raises:
      ValueError: a field that is missing, undecodable or contradicts another; an id that is not in
        the class table. The message names the sample.
    """
    import tensorflow as tf

    sample = parse_sample(record)
    key = sample.key
    if sample.label[24:26] != _GREY_8_BIT:
        raise ValueError(f"{key}: the label must be an 8-bit greyscale PNG of ids; got other data")
    _check_image(sample)
    try:
        decode_image(sample.image)
        label = tf.io.decode_png(sample.label, channels=1)[..., 0].numpy()
    except tf.errors.OpError as error:
        raise ValueError(f"{key}: image and label must be decodable; got {error}") from error
    facts = note_facts(key, label, sample.image)
    unknown = sorted(facts.pixels.keys() - set(ids) - (set() if sample.tiles else {VOID}))
    if unknown:
        raise ValueError(f"{key}: ids must be in the class table; got {unknown}")
    if sample.tiles and not _tiles_match(sample.tiles, label):
        raise ValueError(f"{key}: the tiles must be those of the label; got other pixels")
    return facts


def _check_image(sample: Sample) -> None:
    """Checks what TensorFlow does not check, and rejects images that would fill its memory.

    Raises:
      ValueError: the message names the fault and the sample.
    """
    try:
        image, label = open_image(sample.image), open_image(sample.label)
        for picture in (image, label):
            check_single(picture)
        if sample.image.startswith(JPEG):
            check_jpeg(sample.image)
    except (ValueError, OSError, SyntaxError, zlib.error) as error:
        raise ValueError(f"{sample.key}: image and label must be decodable; got {error}") from error
    sizes = [(picture.height, picture.width) for picture in (image, label)]
    if sizes != [sample.size] * 2:
        raise ValueError(
            f"{sample.key}: sizes must be equal; got image {sizes[0]}, label {sizes[1]}, "
            f"image/height and image/width {sample.size}"
        )
    if image.mode == "CMYK":  # decoders convert its colours differently
        raise ValueError(f"{sample.key}: an image must be grey or RGB; got CMYK")
    if channel_bits(sample.image) > 8:
        raise ValueError(
            f"{sample.key}: an image must have at most 8 bits per channel; got "
            f"{channel_bits(sample.image)}"
        )


def _tiles_match(tiles: Sequence[bytes], label: np.ndarray) -> bool:
    """Returns whether tiles are those of a label, and zero beyond it."""
    rows, columns = tile_grid(label.shape)
    if len(tiles) != rows * columns:
        return False
    filled = fill_tiles(label)
    try:
        decoded = decode_window(tiles, filled.shape, Window(0, 0, *filled.shape))
        return np.array_equal(decoded, filled)
    except ValueError:
        return False
