import hashlib

import numpy as np
import pytest
import tensorflow as tf

from mapseg.data.tiles import (
    TILE_PX,
    TileTable,
    Window,
    count_ids,
    decode_window,
    encode_tile_table,
    encode_tiles,
    pack_ids,
    read_tile_table,
    tile_grid,
)

SIZES = [(1, 1), (255, 257), (256, 256), (300, 700), (513, 100)]


def label_of(size, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (size[0] // 9 + 1, size[1] // 7 + 1))
    return np.kron(blocks, np.ones((9, 7))).astype(np.uint8)[: size[0], : size[1]]


@pytest.mark.parametrize("size", SIZES)
def test_every_window_equals_that_part_of_the_label(size):
    label = label_of(size)
    tiles = encode_tiles(label)
    assert len(tiles) == np.prod(tile_grid(size))
    rng = np.random.default_rng(1)
    windows = [(0, 0, *size)]
    for _ in range(30):
        top, left = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        height, width = rng.integers(1, size[0] - top + 1), rng.integers(1, size[1] - left + 1)
        windows.append((top, left, height, width))
    for top, left, height, width in windows:
        decoded = decode_window(tiles, size, Window(top, left, height, width))
        np.testing.assert_array_equal(decoded, label[top : top + height, left : left + width])


def test_a_window_needs_only_the_tiles_it_overlaps():
    label = label_of((600, 600))
    tiles = [b"" if i != 4 else png for i, png in enumerate(encode_tiles(label))]
    decoded = decode_window(tiles, (600, 600), Window(256, 256, 256, 256))
    np.testing.assert_array_equal(decoded, label[256:512, 256:512])
    with pytest.raises(ValueError, match="a tile must be"):
        decode_window(tiles, (600, 600), Window(255, 256, 256, 256))


def test_tiles_are_pngs_that_tensorflow_reads():
    label = label_of((300, 300))
    bottom_right = tf.io.decode_png(encode_tiles(label)[3], channels=1)[..., 0]
    assert bottom_right.shape == (TILE_PX, TILE_PX)
    np.testing.assert_array_equal(bottom_right[:44, :44], label[256:, 256:])


def test_ids_are_counted_by_tile():
    label = np.zeros((300, 400), np.uint8)
    label[10:12, 255:258] = 7  # two rows: one column in the first tile, two in the second
    label[299, 0] = 255
    counts = count_ids(label)
    assert counts[:, 7].tolist() == [2, 4, 0, 0]
    assert counts[:, 255].tolist() == [0, 0, 1, 0]
    assert counts.sum() == label.size


def table_of(labels):
    held = np.concatenate([pack_ids(count_ids(label)) for label in labels])
    return TileTable(np.array([label.shape for label in labels], np.int32), held)


def test_a_table_says_which_tiles_hold_an_id():
    labels = [np.zeros((300, 400), np.uint8), np.full((10, 10), 9, np.uint8)]
    labels[0][299, 399] = 8
    table = table_of(labels)
    assert table.first.tolist() == [0, 4, 5]
    assert table.holding([0]).tolist() == [0, 1, 2, 3]
    assert table.holding([8]).tolist() == [3]
    assert table.holding([8, 9]).tolist() == [3, 4]
    assert table.holding([200]).tolist() == []
    narrow = TileTable(table.sizes, table.held[:, :2])
    assert narrow.holding([8, 9, 200]).tolist() == [3, 4]


def test_a_table_is_read_back_only_as_it_was_written(tmp_path):
    table = table_of([label_of((300, 400)), label_of((20, 30))])
    data = encode_tile_table(table)
    assert encode_tile_table(table) == data
    path, sha256 = tmp_path / "t.npz", hashlib.sha256(data).hexdigest()
    with pytest.raises(FileNotFoundError, match=r"t\.npz.*missing\. Remedy: x"):
        read_tile_table(path, sha256, "Remedy: x")
    path.write_bytes(data)
    restored = read_tile_table(path, sha256, "Remedy: x")
    np.testing.assert_array_equal(restored.sizes, table.sizes)
    np.testing.assert_array_equal(restored.held, table.held)
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(ValueError, match=r"t\.npz.*sha256 differs\. Remedy: x"):
        read_tile_table(path, sha256, "Remedy: x")
