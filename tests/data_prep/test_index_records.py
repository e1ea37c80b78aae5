import json
import re

import cv2
import numpy as np
import pytest
import tensorflow as tf

from data_prep import verify_records
from data_prep.build_records import main as convert
from data_prep.index_records import find_shards, main
from mapseg import charts
from mapseg.data.batches import read_samples
from mapseg.data.manifest import read_manifest, read_split_tiles
from mapseg.labels import VOID

LABELS = [{"name": name, "color": [9, 9, 9]} for name in ("road", "car")]
LABEL = "image/segmentation/class/encoded"


@pytest.fixture(autouse=True)
def picture(monkeypatch):
    monkeypatch.setattr(charts, "plot_audit", lambda *_: _[-1].write_bytes(b"picture"))


def sample(seed, size=(30, 300)):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2, size, np.uint8)
    ids[:3] = VOID
    ramp = np.linspace(0, 200, size[1])[:, np.newaxis] + [0, 25 + seed, 50]
    return np.broadcast_to(ramp.astype(np.uint8), (*size, 3)), ids


def example(seed, **changes):
    """A record as TF DeepLab's build_data makes it."""
    image, ids = sample(seed)
    fields = {
        "image/encoded": cv2.imencode(".jpg", image[..., ::-1])[1].tobytes(),
        "image/filename": f"frames/{seed}".encode(),
        "image/format": b"jpeg",
        "image/height": ids.shape[0],
        "image/width": ids.shape[1],
        "image/channels": 3,
        LABEL: cv2.imencode(".png", ids)[1].tobytes(),
        "image/segmentation/class/format": b"png",
        **changes,
    }
    features = {
        name: tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, int)
        else tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in fields.items()
        if value is not None
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path, *records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture
def shards(tmp_path):
    """Five samples in two shards of train, and one in a shard of val without the suffix."""
    (tmp_path / "classes.json").write_text(json.dumps({"labels": LABELS}))
    folder = tmp_path / "r"
    folder.mkdir()
    write(folder / "train_fine-00000-of-00002.tfrecord", *(example(i) for i in range(3)))
    write(folder / "train_fine-00001-of-00002.tfrecord", example(3), example(4))
    write(folder / "val-00000-of-00001", example(5))
    (folder / "README.txt").touch()
    return folder


def index(folder):
    return main(["", f"--records_dir={folder}", f"--classes={folder.parent / 'classes.json'}"])


@pytest.mark.addons
def test_shards_of_other_tools_are_read_in_place(shards, capsys):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.iterdir()}
    assert index(shards) == 0
    assert "train_fine: 5 samples in 2 shards\n" in capsys.readouterr().out
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    names = []
    for number, (image, label, name) in enumerate(read_samples(shards, "train_fine")):
        pixels, ids = sample(number)
        np.testing.assert_array_equal(label, ids)
        assert np.abs(image.numpy().astype(int) - pixels).mean() < 2
        names.append(name.numpy().decode())
    assert names == [f"frames/{i}" for i in range(5)]
    split = read_manifest(shards).split("train_fine")
    assert split.pixels == {
        name: sum(np.count_nonzero(sample(i)[1] == place) for i in range(5))
        for place, name in enumerate(("road", "car"))
    }
    assert split.sizes == {(30, 300): 5}
    table = read_split_tiles(read_manifest(shards), "val")
    assert table.sizes.tolist() == [[30, 300]]
    assert table.holding([0, 1]).tolist() == [0, 1]
    assert verify_records.main(["", f"--records_dir={shards}"]) == 0
    audit = json.loads((shards / "audit.json").read_text())
    assert audit["splits"]["val"]["pixels_of_no_class"] == 3 * 300
    capsys.readouterr()
    assert index(shards) == 1
    assert (
        "already indexed or converted. Remedy: to index it again, remove manif"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "name", ["manifest.json", "val-tiles.npz", ".parts/val-00000-of-00001.json"]
)
def test_files_written_next_to_the_shards_can_be_made_again(shards, capsys, name):
    assert index(shards) == 0
    path = shards / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    capsys.readouterr()
    assert verify_records.main(["", f"--records_dir={shards}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert re.search(r"Remedy: .*index_records\b.* as before", error)
    (shards / "manifest.json").unlink()
    assert index(shards) == 0
    assert path.read_bytes() == whole
    assert verify_records.main(["", f"--records_dir={shards}"]) == 0


def test_void_is_no_sign_of_a_mask(shards):
    ids = np.zeros((30, 300), np.uint8)
    ids[:3] = VOID
    write(
        shards / "val-00000-of-00001", example(5, **{LABEL: cv2.imencode(".png", ids)[1].tobytes()})
    )
    assert index(shards) == 0
    assert json.loads((shards / "audit.json").read_text())["suspicious"] == {}


def test_indexed_shards_are_not_read_again(shards, monkeypatch):
    read = []
    original = verify_records.inspect_record

    def counted(record, ids):
        read.append(record)
        if len(read) == 4:
            raise KeyboardInterrupt
        return original(record, ids)

    monkeypatch.setattr("data_prep.index_records.inspect_record", counted)
    monkeypatch.setattr("data_prep.index_records.cores", lambda: 1)
    assert index(shards) == 130
    assert not (shards / "manifest.json").exists()
    assert index(shards) == 0
    assert len(read) == 4 + 3  # the first shard's three samples only once
    assert read_manifest(shards).split("train_fine").samples == 5


FOREIGN = {
    "no label": ({LABEL: None}, "must have the field image/segmentation/class/encoded"),
    "no key": ({"image/filename": None}, "must have the field image/filename"),
    "another height": ({"image/height": 31}, "image/height and image/width (31, 300)"),
    "no width": ({"image/width": None}, "image/height and image/width (30, 0)"),
    "broken image": ({"image/encoded": b"\xff\xd8\xff"}, "image and label must be decodable"),
    "a label of another kind": ({LABEL: example(0)}, "8-bit greyscale PNG"),
    "an unknown id": (
        {LABEL: cv2.imencode(".png", np.full((30, 300), 7, np.uint8))[1].tobytes()},
        "ids must be in the class table; got [7]",
    ),
    "a key twice": ({"image/filename": b"frames/0"}, "got frames/0 more than once"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_record_of_another_kind_is_named(shards, capsys, case):
    changes, expected = FOREIGN[case]
    path = shards / "train_fine-00001-of-00002.tfrecord"
    write(path, example(3), example(4, **changes))
    assert index(shards) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
    if case != "a key twice":
        assert f"{path}: record 1: " in error
    assert not (shards / "manifest.json").exists()


def test_files_that_are_not_shards_are_named(shards, capsys):
    write(shards / "val-00000-of-00001", b"\xff\xff")
    assert index(shards) == 1
    assert "val-00000-of-00001: record 0: must be a tf.train.Example" in capsys.readouterr().err
    (shards / "val-00000-of-00001").write_bytes(b"some text, longer than a header")
    assert index(shards) == 1
    error = capsys.readouterr().err
    assert "val-00000-of-00001: record 0: damaged: no TFRecord header at byte 0" in error


def test_a_set_must_be_complete_and_the_only_one(shards, tmp_path):
    assert {name: len(paths) for name, paths in find_shards(shards).items()} == {
        "train_fine": 2,
        "val": 1,
    }
    (shards / "val-00000-of-00001.tfrecord").touch()
    with pytest.raises(ValueError, match=r"split val must be one set .* got val-00000-of-00001 "):
        find_shards(shards)
    (shards / "val-00000-of-00001.tfrecord").rename(shards / "val-00001-of-00003.tfrecord")
    with pytest.raises(ValueError, match=r"one set of shards; got val-00000-of-00001 and val-0000"):
        find_shards(shards)
    (shards / "val-00000-of-00001").unlink()
    with pytest.raises(
        ValueError, match=r"val must have shards 0 to 2; got 1, without 00000, 00002"
    ):
        find_shards(shards)
    (shards / "val-00001-of-00003.tfrecord").rename(shards / "val.tfrecord")
    with pytest.raises(ValueError, match=r"named SPLIT-00000-of-00010\.tfrecord; got val\.tfrec"):
        find_shards(shards)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must contain shards named"):
        find_shards(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_shards(tmp_path / "none")


def test_another_split_can_be_converted_next_to_indexed_shards(shards, tmp_path, capsys):
    assert index(shards) == 0
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / "k.png"), np.zeros((30, 40), np.uint8))
    folders = [f"--{kind[:-1]}_dir={tmp_path / kind}" for kind in ("images", "labels")]
    common = [*folders, f"--classes={tmp_path / 'classes.json'}", f"--records_dir={shards}"]
    assert convert(["", *common, "--split=new"]) == 0
    assert sorted(read_manifest(shards).splits) == ["new", "train_fine", "val"]
    assert verify_records.main(["", f"--records_dir={shards}"]) == 0
    capsys.readouterr()
    assert convert(["", *common, "--split=val"]) == 1
    assert "it was not converted but indexed" in capsys.readouterr().err
