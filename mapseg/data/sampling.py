"""Which sample is read when: the endless, shuffled stream as a pure function of the seed.

Any place of the stream can be asked for without those before it, and nothing is buffered.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mapseg.data.tiles import TileTable
from mapseg.labels import LabelSet

# Streams of permutations.
_SAMPLES, _CLASSES, _TILES_OF_FIRST_CLASS = 0, 1, 2


def shuffled(
    seed: int, stream: int | tf.Tensor, position: tf.Tensor, count: int | tf.Tensor
) -> tf.Tensor:
    """Says which of `count` things comes at a position of an endless stream of permutations.

    Args:
      seed: of the run.
      stream: zero or more; each is another stream of the same seed.
      position: [] int64, 0 for the stream's first.
      count: of the things, positive; each comes once in every `count` positions.

    Returns:
      [] int64 below `count`.
    """
    count = tf.cast(count, tf.int64)
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(stream, tf.int64)])
    epoch_key = tf.random.experimental.stateless_fold_in(key, position // count)
    return tf.random.experimental.index_shuffle(position % count, epoch_key, count - 1)


@dataclass(frozen=True, eq=False)
class ClassTiles:
    """By class of a label set, the label tiles that hold it.

    Attributes:
      train_ids: [C] int64, of the classes that any tile holds.
      starts: [C + 1] int64, where each class begins in `places`, and the end.
      places: [...] int32, places in a table of tiles.
      first: [samples + 1] int64, as in `tiles.TileTable`.
    """

    train_ids: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    first: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.starts.nbytes + self.places.nbytes + self.first.nbytes

    def look_up(self, i: int) -> tuple[int, tuple[int, int]]:
        """Returns the sample of entry `i` and its (tile within the sample, train id)."""
        place = int(self.places[i])
        sample = int(np.searchsorted(self.first, place, side="right")) - 1
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        return sample, (place - int(self.first[sample]), int(self.train_ids[number]))


def find_class_tiles(table: TileTable, labels: LabelSet, origin: str) -> ClassTiles:
    """Finds the tiles of every class of a label set.

    Args:
      table: of a split.
      labels: the label set.
      origin: names the split in errors.

    Raises:
      ValueError: no tile holds any of them.
    """
    ids = np.array(labels.source_to_train)
    found = [table.holding(np.flatnonzero(ids == c.id).tolist()) for c in labels.classes]
    held = [train_id for train_id, places in enumerate(found) if len(places)]
    if not held:
        raise ValueError(
            f"{origin}: class_balance must be 0 where no label has a class of {labels.name}, as "
            "here. Remedy: leave --class_balance out, or give another --label_set"
        )
    return ClassTiles(
        train_ids=np.array(held, np.int64),
        starts=np.cumsum([0] + [len(found[i]) for i in held]).astype(np.int64),
        places=np.concatenate([found[i] for i in held]).astype(np.int32),
        first=table.first,
    )


def draw_sample(
    seed: int, position: tf.Tensor, samples: int, balance: float, starts: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    """Says what is read at a position: a sample, or a tile for the sake of a class.

    The plain draws go through all samples in another order in each epoch. The balanced ones go
    through all classes in turn, each time in another order, and for each class through all its
    tiles (class-uniform sampling, as in Zhu et al., "Improving Semantic Segmentation via Video
    Propagation and Label Relaxation", 2019).

    Args:
      seed: of the run.
      position: [] int64, 0 for the stream's first.
      samples: how many there are.
      balance: the share of the draws that are balanced, 0 to 1; exact over any stretch of draws,
        but for one.
      starts: of `ClassTiles`; not used where `balance` is 0.

    Returns:
      The pair (sample, entry of `ClassTiles`), each [] int64; the sample is -1 where the draw is
      balanced, else the entry is.
    """
    if not balance:
        return shuffled(seed, _SAMPLES, position, samples), tf.constant(-1, tf.int64)

    def balanced_before(position: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.cast(position, tf.float64) * balance, tf.int64)

    draws = balanced_before(position)
    sample = shuffled(seed, _SAMPLES, position - draws, samples)
    classes = len(starts) - 1
    visit, number = draws // classes, shuffled(seed, _CLASSES, draws, classes)
    first, end = tf.gather(starts, number), tf.gather(starts, number + 1)
    entry = first + shuffled(seed, _TILES_OF_FIRST_CLASS + number, visit, end - first)
    is_balanced = balanced_before(position + 1) > draws
    none = tf.constant(-1, tf.int64)
    return tf.where(is_balanced, none, sample), tf.where(is_balanced, entry, none)
