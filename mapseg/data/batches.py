"""Shards -> batches; what is in a batch is a pure function of (records, config, step)."""

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.data.manifest import (
    Split,
    index_split,
    read_manifest,
    read_record,
    read_split_tiles,
)
from mapseg.data.sampling import draw_sample, find_class_tiles
from mapseg.data.transforms import (
    augment,
    pad,
    random_scale,
    random_window,
    resize_pair,
    shrink_of,
)
from mapseg.data.windows import (
    Sample,
    decode_image_window,
    decode_label_tile,
    decode_label_window,
    parse_sample,
)
from mapseg.labels import VOID, make_label_set
from mapseg.machine import cores

# Keeps the augmentation's random numbers apart from others of the same seed.
_AUGMENTATION = 1
# Of what lies beyond an image: near zero for every encoder, as the padding of prediction is.
_GREY = 127
_BATCHES_AHEAD = 2
_BATCHES_IN_HAND = 2  # one being put together, one being trained on
_WHOLE_BYTES_PER_PX = 8  # the image twice, the label, and its source ids
_CROP_COPIES = 3  # alone, with its like, and as a tensor


class _Gate:
    """Admits calls until the interpreter ends, and then waits until none is within.

    The threads of a tf.data iterator that nobody deleted outlive the interpreter; one that calls
    Python then aborts the process, or hangs it.
    """

    _QUIET_SECS = 0.1

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._within = self._refused = 0
        self._closed = False
        atexit.register(self._close)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        with self._changed:
            if self._closed:
                self._refused += 1
                raise InterruptedError("the program is ending")
            self._within += 1
        try:
            yield
        finally:
            with self._changed:
                self._within -= 1
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._within)
        refused = -1
        while refused != self._refused:  # iterators read on until they are full of refusals
            refused = self._refused
            time.sleep(self._QUIET_SECS)


_gate = _Gate()


def make_crop(
    sample: Sample,
    table: np.ndarray,
    config: TrainConfig,
    rng: np.random.Generator,
    focus: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one training crop of a sample, decoding only what it needs of it.

    Args:
      sample: a parsed record.
      table: [256] uint8, train id by source id.
      config: crop size and augmentation.
      rng: the crop is a pure function of the numbers that it gives.
      focus: (tile, train id): a random pixel of this class in this tile is in the crop.

    Returns:
      The pair ([crop_height, crop_width, 3] uint8, [crop_height, crop_width] uint8 train ids).

    Raises:
      ValueError: the tile does not hold the class.
    """
    around = None if focus is None else _random_pixel(sample, table, *focus, rng)
    scale = random_scale(config, rng)
    window = random_window(sample.size, config.crop_size, scale, rng, around)
    seen = window.within(sample.size)
    image = decode_image_window(sample, seen, shrink_of(scale))
    label = cv2.LUT(decode_label_window(sample, seen), table)
    # Of the crop, what the image covers; the rest is padded last, or it would take memory for all
    # that a small scale shows beyond the image.
    height, width = config.crop_size
    covered = (
        max(round(height * seen.height / window.height), 1),
        max(round(width * seen.width / window.width), 1),
    )
    image, label = augment(*resize_pair(image, label, covered), config, rng)
    return pad(image, config.crop_size, _GREY), pad(label, config.crop_size, VOID)


def _random_pixel(
    sample: Sample, table: np.ndarray, tile: int, train_id: int, rng: np.random.Generator
) -> tuple[int, int]:
    ids, (top, left) = decode_label_tile(sample, tile)
    places = np.flatnonzero(cv2.LUT(ids, table) == train_id)
    if not len(places):
        raise ValueError(
            f"{sample.key}: tile {tile} must hold class {train_id}; it does not. "
            "Remedy: python -m data_prep.verify_records names what is broken"
        )
    row, column = divmod(int(places[int(len(places) * rng.random())]), ids.shape[1])
    return top + row, left + column


def train_batches(
    records_dir: Path, config: TrainConfig, start_step: int = 0, worker: int = 0, workers: int = 1
) -> tf.data.Dataset:
    """Reads the endless stream of training batches from a step on.

    Starting late costs nothing: the batch of a step is computed, not reached by reading.

    Args:
      records_dir: a folder made by `data_prep.build_records`.
      config: split, label set, batch and crop size, augmentation, seed.
      start_step: the first batch is the one of this step.
      worker: which share of every batch is read, from 0.
      workers: how many shares there are; joined by ascending worker they are the whole batch.

    Returns:
      Batches ([B, h, w, 3] uint8, [B, h, w] uint8 train ids or VOID), B = batch_size / workers.

    Raises:
      FileNotFoundError: no records there.
      ValueError: no such split, a label set that does not fit, shares that are not equal, or too
        little memory.
    """
    reader = _Reader(records_dir, config)
    reads, rest = divmod(config.batch_size, workers * config.crops_per_read)
    if rest:
        raise ValueError(
            f"batch_size must be a multiple of crops_per_read times workers, "
            f"{config.crops_per_read} x {workers}; got {config.batch_size}"
        )
    parallel = parallel_reads(config, reader.split, config.batch_size // workers, reader.kept_bytes)
    cv2.setNumThreads(1)  # crops are made side by side, each on a core

    def read_crops(own_read: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        step, place = own_read // reads, own_read % reads
        read = (step * workers + worker) * reads + place
        drawn = reader.draw(read)
        kinds = (tf.uint8, tf.uint8)
        return tf.numpy_function(reader.make_crops, [read, *drawn], kinds, stateful=False)

    def join(images: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = (config.batch_size // workers, *config.crop_size)
        return tf.reshape(images, (*batch, 3)), tf.reshape(ids, batch)

    own_reads = tf.data.Dataset.range(start_step * reads, np.iinfo(np.int64).max)
    crops = own_reads.map(read_crops, num_parallel_calls=parallel, deterministic=True)
    return crops.batch(reads, drop_remainder=True).map(join).prefetch(_BATCHES_AHEAD)


def batch_keys(records_dir: Path, config: TrainConfig, step: int) -> list[str]:
    """Returns the keys of the samples that the batch of a step is made of, in its order."""
    reader = _Reader(records_dir, config)
    reads = config.batch_size // config.crops_per_read
    drawn = [reader.draw(tf.constant(step * reads + n, tf.int64)) for n in range(reads)]
    return [reader.read(int(i), int(entry))[0].key for i, entry in drawn]


class _Reader:
    """What reads the crops of a split."""

    def __init__(self, records_dir: Path, config: TrainConfig):
        manifest = read_manifest(records_dir)
        labels = make_label_set(manifest.classes, config.label_set)
        self._config, self._table = config, labels.table
        self.split = manifest.split(config.train_split)
        self._index = index_split(records_dir, config.train_split)
        self._tiles = None
        if config.class_balance:
            held = read_split_tiles(records_dir, config.train_split)
            self._tiles = find_class_tiles(held, labels, f"{records_dir}, {config.train_split}")
        self._starts = np.zeros(2, np.int64) if self._tiles is None else self._tiles.starts

    @property
    def kept_bytes(self) -> int:
        """Memory that is taken all the time."""
        return self._index.nbytes + (self._tiles.nbytes if self._tiles is not None else 0)

    def draw(self, read: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Says what a read of the stream is of; see `draw_sample`."""
        config = self._config
        return draw_sample(config.seed, read, len(self._index), config.class_balance, self._starts)

    def read(self, i: int, entry: int) -> tuple[Sample, tuple[int, int] | None]:
        """Reads a drawn sample; beside it the (tile, train id) that its crops are for, if any."""
        focus = None
        if self._tiles is not None and entry >= 0:
            i, focus = self._tiles.look_up(entry)
        return parse_sample(read_record(self._index, i)), focus

    def make_crops(self, read: int, i: int, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes the crops of one read: ([N, h, w, 3] uint8, [N, h, w] uint8)."""
        config = self._config
        with _gate.admitted():
            sample, focus = self.read(int(i), int(entry))
            crops = []
            for crop in range(config.crops_per_read):
                numbers = [config.seed, _AUGMENTATION, int(read) * config.crops_per_read + crop]
                rng = np.random.default_rng(numbers)
                crops.append(make_crop(sample, self._table, config, rng, focus))
            images, ids = zip(*crops, strict=True)
            return np.stack(images), np.stack(ids)


def parallel_reads(config: TrainConfig, split: Split, batch_size: int, kept_bytes: int) -> int:
    """Says how many records may be read side by side, in the memory that the config allows.

    A read may need an image and its label decoded whole, as one that is a PNG or was converted by
    another program; beside it lies the record, which is smaller, and the crops in three copies.

    Args:
      config: crops and the memory.
      split: its largest sample counts.
      batch_size: crops in a batch.
      kept_bytes: what is kept all the time.

    Returns:
      One or more, at most the number of cores.

    Raises:
      ValueError: the memory is too little for one.
    """
    height, width = max(split.sizes, key=lambda size: size[0] * size[1])
    crop_bytes = 4 * config.crop_height * config.crop_width
    read_bytes = (
        _WHOLE_BYTES_PER_PX * height * width + _CROP_COPIES * crop_bytes * config.crops_per_read
    )
    fixed_bytes = kept_bytes + crop_bytes * batch_size * (_BATCHES_AHEAD + _BATCHES_IN_HAND)
    parallel = ((config.input_memory_mb << 20) - fixed_bytes) // read_bytes
    if parallel < 1:
        raise ValueError(
            f"input_memory_mb must be at least {(fixed_bytes + read_bytes >> 20) + 1} for images "
            f"of {width}x{height} and batches of {batch_size} crops; got {config.input_memory_mb}"
        )
    return min(parallel, cores())
