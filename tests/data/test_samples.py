import io
import os

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHARED
from PIL import Image
from records_by_hand import SIZES, encoded, scene, write_records

from mapseg.data.batches import read_samples
from mapseg.data.samples import Sample, encode_sample, parse_sample

DATA = SHARED / "data"


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


def test_a_record_written_by_another_tool():
    image = encoded(np.zeros((20, 30, 3), np.uint8), "PNG")
    label = encoded(np.ones((20, 30), np.uint8), "PNG")

    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    fields = {
        "image/encoded": image,
        "image/filename": b"other",
        "image/format": b"png",
        "image/height": 20,
        "image/width": 30,
        "image/channels": 3,
        "image/segmentation/class/encoded": label,
        "image/segmentation/class/format": b"png",
    }

    def record(**changes):
        kept = {k: feature(v) for k, v in {**fields, **changes}.items() if v is not None}
        return tf.train.Example(features=tf.train.Features(feature=kept)).SerializeToString()

    assert parse_sample(record()) == Sample("other", (20, 30), image, label, ())
    with pytest.raises(
        ValueError, match=r"have the field image/encoded; got image/channels, image/filename"
    ):
        parse_sample(record(**{"image/encoded": None}))
    with pytest.raises(ValueError, match=r"tiles must be 256 pixels wide; got 512\. Remedy"):
        parse_sample(record(**{"image/segmentation/class/tile_px": 512}))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_grey_images_get_three_channels(tmp_path, image_format):
    data = encoded(scene(0)[0][..., 0], image_format)
    label = encoded(scene(0)[1], "PNG")
    record = encode_sample("grey", data, image_format.lower(), SIZES[0], 1, label, [])
    write_records(tmp_path, [record])
    image, *_ = next(iter(read_samples(tmp_path, "training")))
    grey = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(image, np.stack([grey] * 3, axis=-1))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")
def test_jpegs_are_decoded_exactly_as_pillow_does(tmp_path):
    path = min((DATA / "mapillary_sample/training/images").glob("*.jpg"), key=os.path.getsize)
    image = np.asarray(Image.open(path))
    label = encoded(np.zeros(image.shape[:2], np.uint8), "PNG")
    record = encode_sample("a", path.read_bytes(), "jpeg", image.shape[:2], 3, label, [])
    write_records(tmp_path, [record])
    np.testing.assert_array_equal(next(iter(read_samples(tmp_path, "training")))[0], image)


def test_the_documented_code_reads_records_without_mapseg(records_dir, tmp_path, monkeypatch):
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
