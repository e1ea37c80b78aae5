"""Chooses the sample of each read: an endless, shuffled stream, a pure function of the seed.

Any position is computed directly, without the positions before it. Nothing is buffered.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mapseg.data.tiles import TileTable
from mapseg.labels import LabelSet

# Numbers of the permutation streams.
_SAMPLES, _CLASSES, _TILES_OF_FIRST_CLASS = 0, 1, 2


def shuffled(
    seed: int, stream: int | tf.Tensor, position: tf.Tensor, count: int | tf.Tensor
) -> tf.Tensor:
    """Returns the item at a position of an endless stream of random permutations.

    Args:
      seed: the run's seed.
      stream: zero or more; each number selects another stream of the same seed.
      position: [] int64, counted from 0.
      count: number of items, positive; each occurs once in every `count` positions.

    Returns:
      [] int64 below `count`.
    """
    count = tf.cast(count, tf.int64)
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(stream, tf.int64)])
    epoch_key = tf.random.experimental.stateless_fold_in(key, position // count)
    return tf.random.experimental.index_shuffle(position % count, epoch_key, count - 1)


@dataclass(frozen=True, eq=False)
class ClassTiles:
    """The label tiles that contain each class of a label set.

    Attributes:
      train_ids: [C] int64, the classes that occur in any tile.
      starts: [C + 1] int64, where each class begins in `places`, then the length of `places`.
      places: [N] int32, indices of tiles in a tile table, grouped by class.
      first: [samples + 1] int64, as in `tiles.TileTable`.
    """

    train_ids: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    first: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.starts.nbytes + self.places.nbytes + self.first.nbytes

    def look_up(self, i: int) -> tuple[int, tuple[int, int]]:
        """Returns the sample of entry `i` and its (tile within the sample, train id)."""
        tile = int(self.places[i])
        sample = int(np.searchsorted(self.first, tile, side="right")) - 1
        class_index = int(np.searchsorted(self.starts, i, side="right")) - 1
        return sample, (tile - int(self.first[sample]), int(self.train_ids[class_index]))


def find_class_tiles(table: TileTable, labels: LabelSet, origin: str) -> ClassTiles:
    """Finds the tiles that contain each class of a label set.

    Args:
      table: the tiles of a split.
      labels: the label set.
      origin: names the split in errors.

    Raises:
      ValueError: no tile contains any of the classes.
    """
    ids = np.array(labels.source_to_train)
    tiles = [table.holding(np.flatnonzero(ids == c.id).tolist()) for c in labels.classes]
    train_ids = [train_id for train_id, places in enumerate(tiles) if len(places)]
    if not train_ids:
        raise ValueError(
            f"{origin}: class_balance must be 0, as no label contains a class of {labels.name}. "
            "Remedy: omit --class_balance, or choose another --label_set"
        )
    return ClassTiles(
        train_ids=np.array(train_ids, np.int64),
        starts=np.cumsum([0] + [len(tiles[i]) for i in train_ids]).astype(np.int64),
        places=np.concatenate([tiles[i] for i in train_ids]).astype(np.int32),
        first=table.first,
    )


def draw_sample(
    seed: int, position: tf.Tensor, samples: int, balance: float, starts: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses what to read at a position: a sample, or a tile that contains a given class.

    Uniform draws visit all samples once per epoch, in a new order each time. Balanced draws cycle
    through all classes, in a new order each cycle, and for each class through all its tiles
    (class-uniform sampling, as in Zhu et al., "Improving Semantic Segmentation via Video
    Propagation and Label Relaxation", 2019).

    Args:
      seed: the run's seed.
      position: [] int64, counted from 0.
      samples: number of samples.
      balance: fraction of balanced draws, 0 to 1; over any stretch of draws their number is exact
        to within one.
      starts: of `ClassTiles`; not used if `balance` is 0.

    Returns:
      The pair (sample, entry of `ClassTiles`), each [] int64. The sample is -1 in a balanced draw,
      the entry is -1 in a uniform one.
    """
    if not balance:
        return shuffled(seed, _SAMPLES, position, samples), tf.constant(-1, tf.int64)

    def balanced_before(position: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.cast(position, tf.float64) * balance, tf.int64)

    balanced = balanced_before(position)
    sample = shuffled(seed, _SAMPLES, position - balanced, samples)
    classes = len(starts) - 1
    cycle, class_index = balanced // classes, shuffled(seed, _CLASSES, balanced, classes)
    first, end = tf.gather(starts, class_index), tf.gather(starts, class_index + 1)
    entry = first + shuffled(seed, _TILES_OF_FIRST_CLASS + class_index, cycle, end - first)
    is_balanced = balanced_before(position + 1) > balanced
    none = tf.constant(-1, tf.int64)
    return tf.where(is_balanced, none, sample), tf.where(is_balanced, entry, none)
