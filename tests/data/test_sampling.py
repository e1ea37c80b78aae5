from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from mapseg.data.sampling import draw_sample, find_class_tiles, shuffled
from mapseg.data.tiles import TileTable, count_ids, pack_ids
from mapseg.labels import LabelClass, LabelSet


def at(position):
    return tf.constant(position, tf.int64)


def test_each_epoch_is_another_permutation():
    def epoch(number, seed=1, stream=0):
        return [int(shuffled(seed, stream, at(7 * number + i), 7)) for i in range(7)]

    epochs = [epoch(n) for n in range(4)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1
    others = [epoch(n, 2) for n in range(4)], [epoch(n, 1, 1) for n in range(4)]
    assert epochs not in others
    assert others[0] != others[1]


def labels_and_tiles():
    """Three samples of 2, 1 and 1 tiles; ids 0 and 1 are class 0, id 5 class 1, none class 2."""
    scenes = [np.zeros((256, 512), np.uint8), np.full((9, 9), 5), np.full((9, 9), 1)]
    scenes[0][0, 300] = 5
    held = np.concatenate([pack_ids(count_ids(scene.astype(np.uint8))) for scene in scenes])
    table = TileTable(np.array([s.shape for s in scenes], np.int32), held[:, :1])
    classes = tuple(LabelClass(i, name, (0, 0, 0)) for i, name in enumerate("abc"))
    mapping = [255] * 256
    mapping[0], mapping[1], mapping[5], mapping[7] = 0, 0, 1, 2
    return LabelSet("abc", classes, tuple(mapping)), table


def test_tiles_are_found_by_class():
    labels, table = labels_and_tiles()
    tiles = find_class_tiles(table, labels, "r")
    assert tiles.train_ids.tolist() == [0, 1]
    assert tiles.starts.tolist() == [0, 3, 5]
    assert [tiles.look_up(i) for i in range(5)] == [
        (0, (0, 0)),
        (0, (1, 0)),
        (2, (0, 0)),
        (0, (1, 1)),
        (1, (0, 1)),
    ]
    unknown = LabelSet("none", labels.classes, (255,) * 7 + (0,) + (255,) * 248)
    with pytest.raises(
        ValueError,
        match=r"^r, a: class_balance must be 0, as no label contains a class of none.*Remedy",
    ):
        find_class_tiles(table, unknown, "r, a")


def draws(count, balance, starts, seed=3):
    @tf.function
    def draw(position):
        return draw_sample(seed, position, 4, balance, starts)

    return [tuple(int(x) for x in draw(at(i))) for i in range(count)]


def test_without_balance_each_epoch_has_every_sample():
    drawn = draws(12, 0.0, np.zeros(2, np.int64))
    assert all(entry == -1 for _, entry in drawn)
    assert [sorted(i for i, _ in drawn[k : k + 4]) for k in (0, 4, 8)] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_balanced_draws_have_the_exact_share_and_equal_classes(balance):
    starts = np.array([0, 3, 5, 6])  # classes of 3, 2 and 1 tiles
    drawn = draws(96, balance, starts)
    balanced = [entry for sample, entry in drawn if sample == -1]
    assert all((sample == -1) != (entry == -1) for sample, entry in drawn)
    assert len(balanced) == 96 * balance
    by_class = np.searchsorted(starts, balanced, side="right") - 1
    assert set(Counter(by_class.tolist()).values()) == {len(balanced) // 3}
    for k in range(0, len(balanced), 3):  # each class once per cycle
        assert sorted(by_class[k : k + 3]) == [0, 1, 2]
    entries = np.array(balanced)
    first_class = entries[by_class == 0]
    for k in range(0, len(first_class) - 2, 3):  # all its tiles before any again
        assert sorted(first_class[k : k + 3]) == [0, 1, 2]
    plain = [sample for sample, _ in drawn if sample != -1]
    for k in range(0, len(plain), 4):
        assert sorted(plain[k : k + 4]) == [0, 1, 2, 3]
    assert draws(96, balance, starts) == drawn
    assert draws(96, balance, starts, seed=4) != drawn
