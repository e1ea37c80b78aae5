import numpy as np

from data_prep.facts import (
    KEPT_TURNED,
    MADE_UPRIGHT,
    SampleFacts,
    join_facts,
    make_tile_table,
    note_facts,
)
from mapseg.data.manifest import Shard
from mapseg.labels import LabelClass

CLASSES = (LabelClass(0, "road", (0, 0, 0)), LabelClass(9, "car", (9, 9, 9)))


def label(size=(300, 400)):
    ids = np.zeros(size, np.uint8)
    ids[10:12, 250:260] = 9  # in the first two of four tiles
    return ids


def test_facts_are_noted_and_read_back():
    facts = note_facts("k", label(), b"image", KEPT_TURNED)
    assert facts.size == (300, 400)
    assert facts.pixels == {0: 120_000 - 20, 9: 20}
    assert facts.image_sha256.startswith("6105d6cc76af400325e9")  # sha256 of b"image"
    bits = np.unpackbits(facts.held, axis=1)
    assert [np.flatnonzero(row).tolist() for row in bits] == [[0, 9], [0, 9], [0], [0]]
    again = SampleFacts.from_json(facts.to_json())
    np.testing.assert_array_equal(again.held, facts.held)
    assert {**vars(again), "held": 0} == {**vars(facts), "held": 0}


def test_the_facts_of_a_split_are_summed_up():
    facts = [
        note_facts("a", label(), b"1", MADE_UPRIGHT),
        note_facts("b", np.full((30, 40), 255, np.uint8), b"2"),
        note_facts("c", label(), b"3", KEPT_TURNED),
    ]
    shards = (Shard("s", 3, 1, "x"),)
    split, _ = join_facts("t", shards, facts, {"d": "broken"}, CLASSES, {"o": 1})
    assert split.pixels == {"road": 2 * (120_000 - 20), "car": 40}  # 255 is not a class
    assert split.sizes == {(30, 40): 1, (300, 400): 2}
    assert (split.made_upright, split.kept_turned) == (("a",), ("c",))
    assert split.left_out == {"d": "broken"}
    table = make_tile_table(facts, CLASSES)
    assert table.held.shape == (9, 2)  # ids 0 to 9 fit in two bytes
    assert table.holding([9]).tolist() == [0, 1, 5, 6]
