import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import tensorflow as tf
from records_by_hand import CLASSES, sample, write_records

from mapseg.data.manifest import Manifest, Split, read_manifest, shard_name, write_manifest
from mapseg.data.shards import index_split, read_record, read_shard, write_shard


def open_descriptors(folder):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            names.append(str(descriptor.readlink()))
    return sum(name.startswith(str(folder)) for name in names)


def test_a_shard_is_the_file_that_tensorflow_writes(tmp_path):
    records = [b"", b"abc", bytes(70_000)]
    write_shard(tmp_path / "ours", records)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in records:
            writer.write(record)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert list(read_shard(tmp_path / "theirs")) == records


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    def broken():
        yield b"abc"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.tfrecord", broken())
    assert list(tmp_path.iterdir()) == []


def test_the_index_finds_every_record(tmp_path):
    write_records(tmp_path)
    index = index_split(read_manifest(tmp_path), "training")
    assert len(index) == 3
    assert index.shard.tolist() == [0, 0, 1]
    assert index.offset.tolist() == [12, 12 + len(sample(0)) + 4 + 12, 12]
    for i in (2, 0, 1, 0):
        assert read_record(index, i) == sample(i)


def test_the_index_serves_threads_and_gives_its_descriptors_back(tmp_path):
    write_records(tmp_path)

    index = index_split(read_manifest(tmp_path), "training")
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(partial(read_record, index), [i % 3 for i in range(240)]))
    assert read == [sample(i) for i in range(3)] * 80
    assert open_descriptors(tmp_path) == 2
    del index, pool
    assert open_descriptors(tmp_path) == 0


@pytest.mark.parametrize("keep", [5, 30, -3])
def test_a_truncated_shard_is_named(tmp_path, keep):
    manifest = write_records(tmp_path)
    path = tmp_path / shard_name("training", 1, 2)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"training-00001-of-00002.*must have"):
        index_split(read_manifest(tmp_path), "training")
    whole = manifest.split("training").shards[1]
    cut = type(whole)(whole.file, 1, path.stat().st_size, whole.sha256)
    split = Split("training", (cut,), {}, {(4, 6): 1}, {}, "", "")
    write_manifest(Manifest(tmp_path, "0", CLASSES, {"training": split}, {}))
    with pytest.raises(ValueError, match=r"training-00001-of-00002.*truncated"):
        index_split(read_manifest(tmp_path), "training")


def test_every_flipped_bit_is_found(tmp_path):
    write_records(tmp_path, [sample(0)])
    path = tmp_path / shard_name("training", 0, 2)
    whole = path.read_bytes()
    for place in [0, 7, 8, 11, 12, 100, len(whole) - 5, len(whole) - 1]:
        broken = bytearray(whole)
        broken[place] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="training-00000-of-00002"):
            read_record(index_split(read_manifest(tmp_path), "training"), 0)
