import contextlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHARED
from PIL import Image

from mapseg.data.batches import read_samples
from mapseg.data.manifest import Manifest, Split, read_manifest, shard_name, write_manifest
from mapseg.data.samples import encode_sample
from mapseg.data.shards import index_split, read_record, read_shard, write_shard
from mapseg.data.tiles import encode_tiles
from mapseg.labels import VOID, LabelClass, LabelSet

CLASSES = (
    LabelClass(0, "road", (128, 64, 128)),
    LabelClass(1, "car", (0, 0, 142)),
    LabelClass(2, "unlabeled", (0, 0, 0), evaluate=False),
)
SIZES = [(4, 6), (8, 4), (4, 6)]


def encoded(pixels, image_format):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def scene(i):
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (*SIZES[i], 3), np.uint8)
    return image, rng.integers(0, 3, SIZES[i], np.uint8)


def sample(i, name=None):
    image, label = scene(i)
    return encode_sample(
        name or f"-key_{i}",
        encoded(image, "PNG"),
        "png",
        SIZES[i],
        3,
        encoded(label, "PNG"),
        encode_tiles(label),
    )


def write_records(folder, records=None):
    records = [sample(i) for i in range(3)] if records is None else records
    shards = [
        write_shard(folder / shard_name("training", 0, 2), records[:2]),
        write_shard(folder / shard_name("training", 1, 2), records[2:]),
    ]
    split = Split(
        "training",
        tuple(shards),
        {c.name: 0 for c in CLASSES},
        {(4, 6): 2, (8, 4): 1},
        {},
        "training-tiles.npz",
        "",
    )
    manifest = Manifest(folder, "0", CLASSES, {"training": split}, {"testing": "no labels"})
    write_manifest(manifest)
    return manifest


def open_descriptors(folder):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            names.append(str(descriptor.readlink()))
    return sum(name.startswith(str(folder)) for name in names)


def test_a_record_is_the_example_that_tensorflow_writes():
    label = encoded(np.full((3, 400), 7, np.uint8), "PNG")
    record = encode_sample("ä/b", b"\x00\xff" * 9000, "jpeg", (3, 400), 1, label, [label, b"2"])
    features = tf.train.Example.FromString(record).features.feature
    assert {k: v.int64_list.value[0] for k, v in features.items() if v.HasField("int64_list")} == {
        "image/height": 3,
        "image/width": 400,
        "image/channels": 1,
        "image/segmentation/class/tile_px": 256,
    }
    tiles = features.pop("image/segmentation/class/tiles")
    assert list(tiles.bytes_list.value) == [label, b"2"]
    assert {k: v.bytes_list.value[0] for k, v in features.items() if v.HasField("bytes_list")} == {
        "image/encoded": b"\x00\xff" * 9000,
        "image/filename": "ä/b".encode(),
        "image/format": b"jpeg",
        "image/segmentation/class/encoded": label,
        "image/segmentation/class/format": b"png",
    }
    again = tf.train.Example.FromString(record).SerializeToString(deterministic=True)
    assert len(again) == len(record)


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


def test_the_manifest_is_read_back(tmp_path):
    written = write_records(tmp_path)
    assert read_manifest(tmp_path) == written
    assert written.split("training").samples == 3
    assert json.loads((tmp_path / "manifest.json").read_text())["splits"]["training"]["sizes"] == {
        "4x6": 2,
        "8x4": 1,
    }


def test_long_side_is_the_median_over_samples():
    split = Split("a", (), {}, {(10, 20): 3, (50, 40): 1, (30, 31): 1}, {}, "", "")
    assert split.long_side_px == 20  # of 20 20 20 31 50


def test_samples_come_in_stored_order_with_train_ids(tmp_path):
    write_records(tmp_path)
    found = list(read_samples(tmp_path, "training"))
    assert [name.numpy().decode() for *_, name in found] == ["-key_0", "-key_1", "-key_2"]
    for i, (image, label, _) in enumerate(found):
        assert image.dtype == label.dtype == tf.uint8
        np.testing.assert_array_equal(image, scene(i)[0])
        np.testing.assert_array_equal(label, np.array([0, 1, VOID])[scene(i)[1]])


def test_a_label_set_of_ones_own(tmp_path):
    write_records(tmp_path)
    mapping = (1, 0) + (VOID,) * 254
    swapped = LabelSet("swapped", CLASSES[:2], mapping)
    _, label, _ = next(iter(read_samples(tmp_path, "training", swapped)))
    np.testing.assert_array_equal(label, np.array([1, 0, VOID])[scene(0)[1]])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_grey_images_get_three_channels(tmp_path, image_format):
    data = encoded(scene(0)[0][..., 0], image_format)
    label = encoded(scene(0)[1], "PNG")
    record = encode_sample("grey", data, image_format.lower(), SIZES[0], 1, label, [])
    write_records(tmp_path, [record])
    image, *_ = next(iter(read_samples(tmp_path, "training")))
    grey = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(image, np.stack([grey] * 3, axis=-1))


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
        found = list(pool.map(partial(read_record, index), [i % 3 for i in range(240)]))
    assert found == [sample(i) for i in range(3)] * 80
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


def test_no_records_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*data_prep.build_records"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (3, "a newer")])
def test_another_format_is_refused(tmp_path, version, age):
    write_records(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('version": 2', f'version": {version}'))
    expected = rf"must be 2; got {version}, of {age} mapseg\. Remedy: convert again into another"
    with pytest.raises(ValueError, match=expected):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("was", "becomes"), [('"samples": 3', '"samples": 4'), ("{", "[{"), ("{", ""), ("road", "rood")]
)
def test_a_damaged_manifest_is_named_with_its_remedy(tmp_path, was, becomes):
    write_records(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(was, becomes, 1))
    remedy = "Remedy: remove the file, and run what wrote it .* shards that are whole are kept"
    with pytest.raises(ValueError, match=rf"manifest\.json: must be .* {remedy}"):
        read_manifest(tmp_path)


def test_the_remedy_for_a_lost_shard_is_true_of_others_shards_too(tmp_path):
    write_records(tmp_path)
    (tmp_path / shard_name("training", 1, 2)).unlink()
    expected = (
        r"data_prep\.build_records as before.* must be fetched again.*data_prep\.index_records"
    )
    with pytest.raises(FileNotFoundError, match=rf"00001-of-00002.* is missing\. .*{expected}"):
        read_manifest(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_records(tmp_path)
    (tmp_path / shard_name("training", 1, 2)).unlink()
    with pytest.raises(FileNotFoundError, match=r"training-00001-of-00002\.tfrecord"):
        read_samples(tmp_path, "training")


def test_an_unknown_split_names_those_there(tmp_path):
    manifest = write_records(tmp_path)
    with pytest.raises(ValueError, match=r"training; got val$"):
        manifest.split("val")
    with pytest.raises(ValueError, match=r"got testing \(testing was skipped: no labels\)"):
        manifest.split("testing")


DATA = SHARED / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")
def test_jpegs_are_decoded_exactly_as_pillow_does(tmp_path):
    path = min((DATA / "mapillary_sample/training/images").glob("*.jpg"), key=os.path.getsize)
    image = np.asarray(Image.open(path))
    label = encoded(np.zeros(image.shape[:2], np.uint8), "PNG")
    record = encode_sample("a", path.read_bytes(), "jpeg", image.shape[:2], 3, label, [])
    write_records(tmp_path, [record])
    np.testing.assert_array_equal(next(iter(read_samples(tmp_path, "training")))[0], image)


def test_what_the_documents_say_of_reading_elsewhere(records_dir, tmp_path, monkeypatch):
    text = (ROOT / "docs/records.md").read_text(encoding="utf-8")
    (tmp_path / "records").symlink_to(records_dir)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(text.split("```python")[1].split("```")[0], names)
    ours = sorted(read_samples(records_dir, "training"), key=lambda s: s[2].numpy())
    theirs = sorted(names["samples"], key=lambda s: s[2].numpy())
    assert len(ours) == len(theirs) == 6
    for (image, _, name), (other_image, ids, other_name) in zip(ours, theirs, strict=True):
        assert name == other_name
        np.testing.assert_array_equal(image, other_image)
        assert set(np.unique(ids)) <= {0, 1, 2, 3}
