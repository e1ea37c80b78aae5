"""Shards -> batches; the content of a batch is a pure function of (records, config, step)."""

from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.data.crops import make_crop
from mapseg.data.gate import gate
from mapseg.data.manifest import Manifest, Split, read_manifest, read_split_tiles
from mapseg.data.samples import parse_sample
from mapseg.data.sampling import draw_sample, find_class_tiles
from mapseg.data.shards import index_split, read_record
from mapseg.data.whole_samples import errors_naming_sample, read_whole
from mapseg.labels import LabelSet, make_label_set
from mapseg.machine import cores

# Separates the augmentation's random numbers from those of other uses of the same seed.
_AUGMENTATION = 1
_PARALLEL_DECODES = 4  # a decoded 12-megapixel sample is 50 MB
_BATCHES_AHEAD = 2
_BATCHES_IN_HAND = 2  # one being assembled, one being trained on
_WHOLE_BYTES_PER_PX = 8  # the image twice, the label, and its source ids
_CROP_COPIES = 3  # single, stacked, and as a tensor


def read_samples(
    records_dir: Path | str, split: str, label_set: str | LabelSet = "all"
) -> tf.data.Dataset:
    """Reads a split's samples at their stored size and in stored order.

    Args:
      records_dir: the folder that `data_prep.build_records` wrote.
      split: one of its splits.
      label_set: a label set, or the name or path of one; see `labels.make_label_set`.

    Returns:
      A dataset of (image [H, W, 3] uint8, label [H, W] uint8 train ids or VOID, key [] string).

    Raises:
      FileNotFoundError: the folder has no records, or a shard is missing.
      ValueError: an unknown split or label set.
    """
    manifest = read_manifest(records_dir)
    if isinstance(label_set, str):
        label_set = make_label_set(manifest.classes, label_set)
    return stream_samples(manifest, split, label_set)


def stream_samples(
    manifest: Manifest,
    split: str,
    label_set: LabelSet,
    *,
    first: int = 0,
    share: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Reads a split's samples, or a share of them; see `read_samples`.

    Args:
      manifest: of the records.
      split: one of its splits.
      label_set: maps the source ids.
      first: number of samples to read; 0 reads all.
      share: (i, n): reads only every n-th of these, starting with the i-th.

    Returns:
      As `read_samples`.

    Raises:
      FileNotFoundError: a shard is missing.
      ValueError: no such split, or a shard that is truncated or damaged.
    """
    # TensorFlow keeps a numpy_function's closure until the program ends; shards kept open by the
    # index would stay open until then.
    index, table = index_split(manifest, split, keep_open=False), label_set.table

    def read(place: int) -> tuple[np.ndarray, np.ndarray, bytes]:
        with gate.admitted():
            image, label, key = read_whole(index, int(place), table)
            return image, label, key.encode()

    def decode(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        kinds = (tf.uint8, tf.uint8, tf.string)
        image, label, key = tf.numpy_function(read, [place], kinds, stateful=False)
        return (
            tf.ensure_shape(image, [None, None, 3]),
            tf.ensure_shape(label, [None, None]),
            tf.ensure_shape(key, []),
        )

    count = min(first or len(index), len(index))
    places = tf.data.Dataset.range(share[0], count, share[1])
    return places.map(decode, num_parallel_calls=_PARALLEL_DECODES, deterministic=True)


def train_batches(
    records_dir: Path | str,
    config: TrainConfig,
    start_step: int = 0,
    label_set: LabelSet | None = None,
) -> tf.data.Dataset:
    """Reads the endless stream of training batches, starting at a step.

    Args:
      records_dir: a folder made by `data_prep.build_records`.
      config: split, label set, batch and crop size, augmentation, seed.
      start_step: the step of the first batch.
      label_set: maps the source ids; None uses the one that `config` names.

    Returns:
      Batches ([B, h, w, 3] uint8, [B, h, w] uint8 train ids or VOID), B = batch_size.

    Raises:
      FileNotFoundError: the folder has no records.
      ValueError: no such split, a label set that does not fit, or too little memory.
    """
    manifest = read_manifest(records_dir)
    labels = label_set or make_label_set(manifest.classes, config.label_set)
    return CropStream(manifest, config, labels).batches(start_step)


class CropStream:
    """The endless stream of a split's training crops, in batches."""

    def __init__(self, manifest: Manifest, config: TrainConfig, label_set: LabelSet):
        """Indexes the samples and, for class balance, the tiles that crops are made from.

        Args:
          manifest: of the records.
          config: split, batch and crop size, augmentation, seed.
          label_set: maps the source ids.

        Raises:
          FileNotFoundError: a shard is missing.
          ValueError: no such split, or a damaged shard or table.
        """
        split = config.train_split
        self._config, self._table = config, label_set.table
        self._split = manifest.split(split)
        self._index = index_split(manifest, split)
        self._tiles = None
        if config.class_balance:
            table = read_split_tiles(manifest, split)
            self._tiles = find_class_tiles(table, label_set, f"{manifest.records_dir}, {split}")
        self._starts = np.zeros(2, np.int64) if self._tiles is None else self._tiles.starts

    def batches(self, start_step: int = 0, worker: int = 0, workers: int = 1) -> tf.data.Dataset:
        """Reads the batches, starting at a step.

        A late start costs nothing: the samples of any step are computed without reading the steps
        before it.

        Args:
          start_step: the step of the first batch.
          worker: which share of every batch to read, from 0.
          workers: number of shares; concatenated in worker order they form the whole batch.

        Returns:
          As `train_batches`, with B = batch_size / workers.

        Raises:
          ValueError: a batch that cannot be divided equally, or too little memory.
        """
        config = self._config
        reads, rest = divmod(config.batch_size, workers * config.crops_per_read)
        if rest:
            raise ValueError(
                f"batch_size must be a multiple of crops_per_read times workers, "
                f"{config.crops_per_read} x {workers}; got {config.batch_size}"
            )
        kept_bytes = self._index.nbytes + (self._tiles.nbytes if self._tiles is not None else 0)
        parallel = parallel_reads(config, self._split, config.batch_size // workers, kept_bytes)
        cv2.setNumThreads(1)  # crops are made in parallel, one per core

        def read_crops(local_read: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            step, place = local_read // reads, local_read % reads
            read = (step * workers + worker) * reads + place
            kinds = (tf.uint8, tf.uint8)
            arguments = [read, *self._draw(read)]
            return tf.numpy_function(self._make_crops, arguments, kinds, stateful=False)

        def join(images: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            batch = (config.batch_size // workers, *config.crop_size)
            return tf.reshape(images, (*batch, 3)), tf.reshape(ids, batch)

        local_reads = tf.data.Dataset.range(start_step * reads, np.iinfo(np.int64).max)
        crops = local_reads.map(read_crops, num_parallel_calls=parallel, deterministic=True)
        return crops.batch(reads, drop_remainder=True).map(join).prefetch(_BATCHES_AHEAD)

    def keys(self, step: int) -> list[str]:
        """Returns the keys of the samples in the batch of a step, in the order of the batch."""
        reads = self._config.batch_size // self._config.crops_per_read
        draws = [self._draw(tf.constant(step * reads + n, tf.int64)) for n in range(reads)]
        places = [self._resolve_draw(int(i), int(entry))[0] for i, entry in draws]
        return [parse_sample(read_record(self._index, place)).key for place in places]

    def _draw(self, read: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws the sample or tile of one read of the stream; see `draw_sample`."""
        config = self._config
        return draw_sample(config.seed, read, len(self._index), config.class_balance, self._starts)

    def _resolve_draw(self, i: int, entry: int) -> tuple[int, tuple[int, int] | None]:
        """Returns the drawn sample, and the (tile, train id) that its crops must show, if any."""
        if self._tiles is not None and entry >= 0:
            return self._tiles.look_up(entry)
        return i, None

    def _make_crops(self, read: int, i: int, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes the crops of one read: ([N, h, w, 3] uint8, [N, h, w] uint8)."""
        config = self._config
        with gate.admitted():
            place, focus = self._resolve_draw(int(i), int(entry))
            record = read_record(self._index, place)
            crops = []
            with errors_naming_sample(self._index, place, record):
                sample = parse_sample(record)
                for crop in range(config.crops_per_read):
                    numbers = [config.seed, _AUGMENTATION, int(read) * config.crops_per_read + crop]
                    rng = np.random.default_rng(numbers)
                    crops.append(make_crop(sample, self._table, config, rng, focus))
            images, ids = zip(*crops, strict=True)
            return np.stack(images), np.stack(ids)


def parallel_reads(config: TrainConfig, split: Split, batch_size: int, kept_bytes: int) -> int:
    """Returns how many records may be read in parallel within the configured memory.

    A read may need a fully decoded image and label, as for a PNG or a record written by another
    tool. Added to these are the smaller record and three copies of the crops.

    Args:
      config: crops and the memory limit.
      split: its largest sample determines the memory of a read.
      batch_size: crops per batch.
      kept_bytes: memory that is always in use.

    Returns:
      At least one, at most the number of cores.

    Raises:
      ValueError: too little memory for one read.
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
