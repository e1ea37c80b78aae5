"""Whole samples of a split, by their position, and errors that name the sample."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np
import tensorflow as tf

from mapseg.data.manifest import Manifest
from mapseg.data.samples import parse_sample
from mapseg.data.shards import RecordIndex, index_split, read_record
from mapseg.labels import LabelSet


def even_places(count: int, total: int) -> list[int]:
    """Returns at most `count` of `total` positions, at even distances."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def read_places(
    manifest: Manifest, split: str, label_set: LabelSet, places: Iterable[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Reads some samples of a split, without reading the others.

    Args:
      manifest: of the records.
      split: one of its splits.
      label_set: maps the source ids.
      places: positions in the split's stored order.

    Yields:
      (image [H, W, 3] uint8, label [H, W] uint8 train ids or VOID, key), in the order of `places`.
    """
    index, table = index_split(manifest, split), label_set.table
    for place in places:
        yield read_whole(index, place, table)


def read_whole(
    index: RecordIndex, place: int, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, str]:
    """Reads one sample: its image [H, W, 3] uint8, its label mapped by a table, and its key.

    Raises:
      ValueError: the record is damaged, or not a valid sample.
    """
    record = read_record(index, place)
    with errors_naming_sample(index, place, record):
        sample = parse_sample(record)
        return sample.whole_image, cv2.LUT(sample.whole_label, table), sample.key


@contextmanager
def errors_naming_sample(index: RecordIndex, i: int, record: bytes) -> Iterator[None]:
    """Adds the record and its sample to errors raised while it is decoded.

    Raises:
      ValueError: replaces any error that a damaged record causes.
    """
    try:
        yield
    except (ValueError, IndexError, cv2.error, tf.errors.InvalidArgumentError) as error:
        shard = index.shard[i]
        name = f"{index.paths[shard]}: record {i - int(np.searchsorted(index.shard, shard))}"
        cause = re.sub(r"\{\{.*?\}\} ?| \[Op:.*", "", str(error)).partition(" Remedy: ")[0]
        with suppress(ValueError):
            key = parse_sample(record).key
            name, cause = f"{name}, {key}", cause.removeprefix(f"{key}: ")
        raise ValueError(
            f"{name}: must be a valid sample; got: {cause.rstrip('.')}. Remedy: python -m "
            "data_prep.verify_records names all damaged files; convert them again"
        ) from error
