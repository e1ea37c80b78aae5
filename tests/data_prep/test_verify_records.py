import dataclasses
import hashlib
import json
import random
import re
import shutil

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep.build_records import main as convert
from data_prep.verify_records import main as verify
from mapseg import charts
from mapseg.data.manifest import read_manifest, read_split_tiles, write_manifest
from mapseg.data.shards import read_shard, write_shard
from mapseg.data.tiles import TileTable, encode_tile_table, encode_tiles


@pytest.fixture(autouse=True, scope="module")
def picture():
    """Skips the audit's picture, which is slower than these conversions; see test_audit.py."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(charts, "plot_audit", lambda *_: _[-1].write_bytes(b"picture"))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    table = {"labels": [{"name": n, "color": [0, 0, 0]} for n in ("road", "car")]}
    (folder / "classes.json").write_text(json.dumps(table))
    for split in ("a", "b"):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(3):
            rng = np.random.default_rng([ord(split), i])
            image = rng.integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(image).save(folder / split / "images" / f"{split}{i}.jpg")
            ids = np.full((30, 40), 0, np.uint8)
            ids[: 10 * i] = 1
            Image.fromarray(ids).save(folder / split / "labels" / f"{split}{i}.png")
    return folder


def add_split(source, split, records_dir, name=None):
    return convert(
        [
            "",
            f"--image_dir={source / split / 'images'}",
            f"--label_dir={source / split / 'labels'}",
            f"--classes={source / 'classes.json'}",
            f"--split={name or split}",
            f"--records_dir={records_dir}",
            "--workers=1",
        ]
    )


@pytest.fixture
def records_dir(source, tmp_path):
    for split in ("a", "b"):
        assert add_split(source, split, tmp_path / "r") == 0
    return tmp_path / "r"


def check(records_dir):
    return verify(["", f"--records_dir={records_dir}"])


def test_valid_records_get_a_table(records_dir, capsys):
    capsys.readouterr()
    assert check(records_dir) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["a", "3", "3"], ["b", "3", "3"]]
    assert table[1].endswith("road 67%, car 33%")  # 30 of 90 rows


def flip(path, chance):
    broken = bytearray(path.read_bytes())
    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    path.write_bytes(broken)


@pytest.mark.parametrize(
    ("pattern", "flips"),
    [
        ("*.tfrecord", 20),
        ("*-tiles.npz", 8),
        ("manifest.json", 20),
        (".parts/*.json", 20),
        ("audit.json", 8),
    ],
)
def test_a_flipped_bit_is_found_and_named(records_dir, capsys, pattern, flips):
    paths = sorted(records_dir.glob(pattern))
    chance = random.Random(0)
    for _ in range(flips):
        path = chance.choice(paths)
        whole = path.read_bytes()
        flip(path, chance)
        capsys.readouterr()
        assert check(records_dir) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert path.name in error
        path.write_bytes(whole)
    assert check(records_dir) == 0


def test_a_missing_or_cut_shard_is_named(records_dir, capsys):
    first, second = sorted(records_dir.glob("*.tfrecord"))[:2]
    second.write_bytes(second.read_bytes()[:-1])
    capsys.readouterr()
    assert check(records_dir) == 1
    assert re.match(rf"error: .*{second.name}: must have \d+ bytes; got", capsys.readouterr().err)
    first.unlink()
    assert check(records_dir) == 1
    assert f"{first.name}: this shard is missing" in capsys.readouterr().err


def test_one_run_names_all_problems(records_dir, capsys):
    chance = random.Random(1)
    a0, a1, a2, b0, _, b2 = sorted(records_dir.glob("*.tfrecord"))
    a0.unlink()
    a1.write_bytes(a1.read_bytes()[:-1])
    flip(a2, chance)
    b2.unlink()
    (records_dir / "b-tiles.npz").unlink()
    spoiled = [records_dir / "a-tiles.npz", records_dir / f".parts/{b0.name}.json"]
    for path in spoiled:
        flip(path, chance)
    capsys.readouterr()
    assert check(records_dir) == 1
    lines = capsys.readouterr().err.splitlines()
    named = {line.split(": ")[1] for line in lines}
    assert named == {str(p) for p in (a0, a1, a2, b2, records_dir / "b-tiles.npz", *spoiled)}
    assert len(lines) == 7
    assert all("Remedy: " in line for line in lines)


def test_records_are_valid_without_the_notes_of_their_conversion(records_dir):
    shutil.rmtree(records_dir / ".parts")
    assert check(records_dir) == 0


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("pixels", {"road": 1, "car": 1}, "pixels of a"), ("sizes", {(30, 40): 2}, "sizes of a")],
)
def test_a_manifest_that_contradicts_its_shards_is_named(
    records_dir, capsys, field, value, expected
):
    manifest = read_manifest(records_dir)
    split = dataclasses.replace(manifest.split("a"), **{field: value})
    splits = {**manifest.splits, "a": split}
    write_manifest(dataclasses.replace(manifest, splits=splits))
    assert check(records_dir) == 1
    error = capsys.readouterr().err
    assert "manifest.json" in error
    assert expected in error


@pytest.mark.parametrize(
    "path",
    [
        ("labels", 0, "color", 0),
        ("splits", "a", "samples"),
        ("splits", "a", "shards", 0, "samples"),
    ],
)
def test_an_edited_manifest_is_found(records_dir, capsys, path):
    raw = json.loads((records_dir / "manifest.json").read_text())
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] += 1
    (records_dir / "manifest.json").write_text(json.dumps(raw))
    capsys.readouterr()
    assert check(records_dir) == 1
    assert "manifest.json: must be as it was written" in capsys.readouterr().err


def rewrite(records_dir, shard, change):
    """Replaces a shard's only sample, and updates everything recorded about the file."""
    manifest = read_manifest(records_dir)
    (record,) = read_shard(records_dir / shard)
    example = tf.train.Example.FromString(record)
    change(example.features.feature)
    new = write_shard(records_dir / shard, [example.SerializeToString()])
    splits = {
        name: dataclasses.replace(
            split, shards=tuple(new if old.file == shard else old for old in split.shards)
        )
        for name, split in manifest.splits.items()
    }
    write_manifest(dataclasses.replace(manifest, splits=splits))


LABEL = "image/segmentation/class"


def png(ids):
    return encode_tiles(np.pad(ids, ((0, 256 - len(ids)), (0, 256 - ids.shape[1]))))[0]


def set_bytes(features, name, *values):
    features[name].bytes_list.value[:] = values


def clear_tiles(features):
    del features[f"{LABEL}/tiles"]


def change_label(value):
    def change(features):
        ids = np.zeros((30, 40), np.uint8)
        ids[:10], ids[10] = 1, value
        ids[10, 1:] = 0
        set_bytes(features, f"{LABEL}/encoded", cv2.imencode(".png", ids)[1].tobytes())
        set_bytes(features, f"{LABEL}/tiles", png(ids))

    return change


CHANGES = {
    "another tile": (
        lambda f: set_bytes(f, f"{LABEL}/tiles", png(np.ones((30, 40), np.uint8))),
        "a1: the tiles must be those",
    ),
    "a tile that does not decode": (
        lambda f: set_bytes(f, f"{LABEL}/tiles", b"PNG"),
        "a1: the tiles must be those",
    ),
    "two tiles": (
        lambda f: f[f"{LABEL}/tiles"].bytes_list.value.append(b""),
        "a1: the tiles must be those",
    ),
    "an unknown id": (change_label(9), "a1: ids must be in the class table; got [9]"),
    "an ignored pixel in a record with tiles": (change_label(255), "class table; got [255]"),
    "a class in another tile": (change_label(1), "pixels of a must be"),
    "another height": (
        lambda f: f["image/height"].int64_list.value.__setitem__(0, 31),
        "image/height and image/width (31, 40)",
    ),
    "no key": (lambda f: f.pop("image/filename"), "must have the field image/filename"),
    "no image": (
        lambda f: set_bytes(f, "image/encoded", b"JPEG"),
        "a1: image and label must be decodable",
    ),
    "no height": (lambda f: f.pop("image/height"), "image/height and image/width (0, 40)"),
    "a key twice": (
        lambda f: set_bytes(f, "image/filename", b"a0"),
        "a key must be unique in a split; a has 2 of a0",
    ),
}


@pytest.mark.addons
@pytest.mark.parametrize("case", CHANGES)
def test_a_sample_that_contradicts_itself_is_named(records_dir, capsys, case):
    change, expected = CHANGES[case]
    rewrite(records_dir, "a-00001-of-00003.tfrecord", change)
    capsys.readouterr()
    assert check(records_dir) == 1
    assert expected in capsys.readouterr().err


def test_a_table_of_other_tiles_is_named(records_dir, capsys):
    manifest = read_manifest(records_dir)
    table = read_split_tiles(read_manifest(records_dir), "a")
    data = encode_tile_table(TileTable(table.sizes, table.held ^ 64))
    (records_dir / "a-tiles.npz").write_bytes(data)
    split = dataclasses.replace(
        manifest.split("a"), tile_table_sha256=hashlib.sha256(data).hexdigest()
    )
    splits = {**manifest.splits, "a": split}
    write_manifest(dataclasses.replace(manifest, splits=splits))
    assert check(records_dir) == 1
    assert "a-tiles.npz: must list the ids in the labels" in capsys.readouterr().err


def test_a_lost_table_is_named_and_made_again(source, records_dir, capsys):
    path = records_dir / "a-tiles.npz"
    whole = path.read_bytes()
    path.unlink()
    assert check(records_dir) == 1
    assert "a-tiles.npz: this table is missing" in capsys.readouterr().err
    assert add_split(source, "a", records_dir) == 0
    assert path.read_bytes() == whole
    assert check(records_dir) == 0


def test_ids_outside_the_class_table_are_found(records_dir, capsys):
    manifest = read_manifest(records_dir)
    write_manifest(dataclasses.replace(manifest, classes=manifest.classes[:1]))
    assert check(records_dir) == 1
    assert "a1: ids must be in the class table; got [1]" in capsys.readouterr().err


def test_records_without_tiles_may_ignore_pixels(records_dir, capsys):
    def as_deeplab(features):
        change_label(255)(features)
        clear_tiles(features)

    rewrite(records_dir, "a-00001-of-00003.tfrecord", as_deeplab)
    assert check(records_dir) == 1
    assert capsys.readouterr().err.count("pixels of a must be") == 1  # and nothing about the id


def test_an_image_in_two_splits_is_found(source, records_dir, capsys):
    assert add_split(source, "a", records_dir, name="c") == 0
    capsys.readouterr()
    assert check(records_dir) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 3
    assert "a0 in a and a0 in c are equal, byte for byte" in error


def test_folders_may_be_numbered_alike(source, records_dir):
    for kind in ("images", "labels"):
        for path in (source / "b" / kind).iterdir():
            (source / "d" / kind).mkdir(parents=True, exist_ok=True)
            name = path.name.replace("b", "a")
            data = path.read_bytes()
            (source / "d" / kind / name).write_bytes(data)
    for path in (source / "d/images").iterdir():
        image = 255 - np.asarray(Image.open(path))
        Image.fromarray(image).save(path)
    assert add_split(source, "d", records_dir) == 0
    assert check(records_dir) == 0


def test_a_folder_without_records_is_named(tmp_path, capsys):
    assert check(tmp_path) == 1
    assert "data_prep.build_records" in capsys.readouterr().err
    assert verify([""]) == 1
    assert "records_dir must be given" in capsys.readouterr().err
    assert verify(["", f"--records_dir={tmp_path}", "more"]) == 1
