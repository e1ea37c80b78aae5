import json
import random

import numpy as np
import pytest
from PIL import Image

from data_prep.build_records import main as convert
from data_prep.verify_records import main as verify


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    table = {"labels": [{"name": n, "color": [0, 0, 0]} for n in ("road", "car")]}
    (folder / "classes.json").write_text(json.dumps(table))
    for split in ("a", "b"):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(3):
            rng = np.random.default_rng(i)
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


def test_sound_records_get_a_table(records_dir, capsys):
    capsys.readouterr()
    assert check(records_dir) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["a", "3", "3"], ["b", "3", "3"]]
    assert table[1].endswith("road 67%, car 33%")  # 30 of 90 rows


def test_a_flipped_bit_is_found_and_named(records_dir, capsys):
    paths = sorted(records_dir.glob("*.tfrecord"))
    chance = random.Random(0)
    for _ in range(20):
        path = chance.choice(paths)
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
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
    assert check(records_dir) == 1
    assert second.name in capsys.readouterr().err
    first.unlink()
    assert check(records_dir) == 1
    assert first.name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("pixels", {"road": 1, "car": 1}, "pixels of a"), ("sizes", {"30x40": 2}, "sizes of a")],
)
def test_a_manifest_that_says_other_things_is_named(records_dir, capsys, field, value, expected):
    path = records_dir / "manifest.json"
    raw = json.loads(path.read_text())
    raw["splits"]["a"][field] = value
    path.write_text(json.dumps(raw))
    assert check(records_dir) == 1
    error = capsys.readouterr().err
    assert "manifest.json" in error
    assert expected in error


def test_ids_outside_the_class_table_are_found(records_dir, capsys):
    path = records_dir / "manifest.json"
    raw = json.loads(path.read_text())
    raw["labels"] = raw["labels"][:1]
    path.write_text(json.dumps(raw))
    assert check(records_dir) == 1
    assert "a1: ids must be in the class table; got [1]" in capsys.readouterr().err


def test_a_sample_in_two_splits_is_found(source, records_dir, capsys):
    assert add_split(source, "a", records_dir, name="c") == 0
    assert check(records_dir) == 1
    assert "a0 is in a and in c" in capsys.readouterr().err


def test_no_records_there(tmp_path, capsys):
    assert check(tmp_path) == 1
    assert "data_prep.build_records" in capsys.readouterr().err
    assert verify([""]) == 1
    assert "records_dir must be given" in capsys.readouterr().err
    assert verify(["", f"--records_dir={tmp_path}", "more"]) == 1
