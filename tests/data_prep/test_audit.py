import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.audit import make_audit
from data_prep.build_records import main
from data_prep.facts import KEPT_TURNED, MADE_UPRIGHT, join_facts, note_facts
from mapseg.charts import plot_audit
from mapseg.data.manifest import Manifest
from mapseg.labels import LabelClass

CLASSES = (
    LabelClass(0, "road", (128, 64, 128)),
    LabelClass(1, "car", (0, 0, 142)),
    LabelClass(2, "sky", (70, 130, 180)),
    LabelClass(3, "unlabeled", (0, 0, 0), evaluate=False),
)


def street(size=(300, 400)):
    """Road below 100 rows of sky."""
    ids = np.zeros(size, np.uint8)
    ids[: size[0] // 3] = 2
    return ids


def audit_of(**splits):
    manifest_splits = {
        name: join_facts(name, [], facts, {"lost": "why"} if name == "b" else {}, CLASSES, {})[0]
        for name, facts in splits.items()
    }
    return make_audit(Manifest(Path(), "0", CLASSES, manifest_splits, {}), splits)


def suspicious(**splits):
    samples = audit_of(**splits)["samples"]
    return [(s["split"], s["key"], s["reason"], s["detail"]) for s in samples]


def test_an_audit_counts_by_class():
    ids = street()
    ids[299, 399] = 1
    audit = audit_of(
        a=[note_facts("x", ids, b"1"), note_facts("y", street((30, 40)), b"2")],
        b=[note_facts("z", street(), b"3")],
    )
    split = audit["splits"]["a"]
    assert (split["samples"], split["tiles"]) == (2, 5)
    road, car, sky, unlabeled = split["classes"]
    assert road["pixels"] == 200 * 400 - 1 + 20 * 40
    assert sky["pixels"] == 100 * 400 + 10 * 40
    assert (car["pixels"], car["samples"], car["tiles"]) == (1, 1, 1)
    assert car["share"] == 1 / (300 * 400 + 30 * 40)
    # 100 rows of sky lie in the two upper tiles of the large sample and the one of the small.
    assert (sky["samples"], sky["tiles"], road["tiles"]) == (2, 3, 5)
    assert unlabeled == {
        "id": 3,
        "name": "unlabeled",
        "pixels": 0,
        "share": 0,
        "samples": 0,
        "tiles": 0,
    }
    assert split["never"] == ["unlabeled"]
    assert split["sizes"] == {"30x40": 1, "300x400": 1}
    assert split["megapixels"] == {
        "total": 0.121,
        "smallest": 0.001,
        "median": 0.061,
        "largest": 0.12,
    }
    assert split["left_out"] == {}
    assert audit["splits"]["b"]["left_out"] == {"lost": "why"}


@pytest.mark.parametrize(
    ("ids", "reason", "detail"),
    [
        ([3], "no evaluated class", "the label has only unlabeled"),
        ([3, 255], "no evaluated class", "the label has only unlabeled, id 255"),
        ([1], "single class", "the label has only car"),
        ([0, 255], "mask", "the label has only the values 0 and 255: not a map of ids"),
    ],
)
def test_a_label_of_few_ids_is_suspicious(ids, reason, detail):
    label = np.resize(np.array(ids, np.uint8), (30, 40))
    facts = [note_facts("k", label, b"1"), note_facts("fine", street((30, 40)), b"2")]
    assert suspicious(a=facts) == [("a", "k", reason, detail)]
    assert audit_of(a=facts)["suspicious"] == {reason: 1}


def test_equal_images_are_suspicious_within_and_across_splits():
    a = [note_facts(key, street(), data) for key, data in (("x", b"1"), ("y", b"1"), ("z", b"2"))]
    assert suspicious(a=a, b=[note_facts("x", street(), b"1")]) == [
        ("a", "x", "same image", "equal, byte for byte, to a/y and 1 more"),
        ("a", "y", "same image", "equal, byte for byte, to a/x and 1 more"),
        ("b", "x", "same image", "equal, byte for byte, to a/x and 1 more"),
    ]


def test_turned_and_small_images_are_suspicious():
    facts = [
        note_facts("turned", street((400, 300)), b"1", MADE_UPRIGHT),
        note_facts("kept", street(), b"2", KEPT_TURNED),
        note_facts("quarter", street((100, 75)), b"3"),
        note_facts("small", street((75, 99)), b"4"),
        note_facts("fine", street(), b"5"),
    ]
    assert suspicious(a=facts) == [
        ("a", "turned", "turned image", "made upright, according to its EXIF orientation"),
        ("a", "kept", "turned image", "kept as stored: its EXIF orientation contradicts the label"),
        ("a", "small", "small image", "75x99; the median long side is 400"),
    ]


@pytest.fixture
def convert(tmp_path):
    """Converts a split of three pairs; two of the images are equal."""
    table = tmp_path / "classes.json"
    table.write_text(json.dumps({"labels": [c.to_json() for c in CLASSES]}))

    def run(split, records_dir):
        folder = tmp_path / split
        if not folder.exists():
            (folder / "images").mkdir(parents=True)
            (folder / "labels").mkdir()
            for seed, key in enumerate("pqr"):
                rng = np.random.default_rng([len(split), seed % 2])
                image = rng.integers(0, 256, (30, 40, 3), np.uint8)
                Image.fromarray(image).save(folder / f"images/{key}.png")
                Image.fromarray(street((30, 40))).save(folder / f"labels/{key}.png")
        folders = [f"--image_dir={folder / 'images'}", f"--label_dir={folder / 'labels'}"]
        options = [f"--classes={table}", f"--split={split}", f"--records_dir={records_dir}"]
        assert main(["", *folders, *options, "--workers=1"]) == 0

    return run


@pytest.mark.addons
def test_the_conversion_writes_the_audit_of_all_splits(convert, tmp_path, capsys):
    convert("train", tmp_path / "r")
    assert "audit.png, audit.json; suspicious samples: 2 same image" in capsys.readouterr().out
    convert("validation", tmp_path / "r")
    assert "suspicious samples: 4 same image" in capsys.readouterr().out
    paths = [tmp_path / "r" / name for name in ("audit.json", "audit.png")]
    whole = [path.read_bytes() for path in paths]
    audit = json.loads(whole[0])
    assert list(audit["splits"]) == ["train", "validation"]
    assert audit["samples"][0] == {
        "split": "train",
        "key": "p",
        "reason": "same image",
        "detail": "equal, byte for byte, to train/r",
    }
    for path in paths:  # if lost, it is rebuilt identically
        path.unlink()
        convert("train", tmp_path / "r")
        assert [path.read_bytes() for path in paths] == whole


@pytest.mark.parametrize("damage", [lambda text: text[:90], lambda text: text.replace("3", "4", 1)])
def test_a_damaged_audit_is_made_again(convert, tmp_path, damage):
    convert("train", tmp_path / "r")
    path = tmp_path / "r/audit.json"
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    convert("train", tmp_path / "r")
    assert path.read_text() == whole


def test_a_split_with_missing_notes_is_not_in_the_audit(convert, tmp_path, capsys):
    convert("train", tmp_path / "r")
    next((tmp_path / "r/.parts").glob("train*")).unlink()
    convert("validation", tmp_path / "r")
    assert "split train is not in audit.json: the notes on its shards are missing" in (
        capsys.readouterr().err
    )
    audit = json.loads((tmp_path / "r/audit.json").read_text())
    assert list(audit["splits"]) == ["validation"]
    convert("train", tmp_path / "r")  # rebuilds the shard and its notes
    audit = json.loads((tmp_path / "r/audit.json").read_text())
    assert list(audit["splits"]) == ["train", "validation"]


@pytest.mark.parametrize("count", [4, 124])
def test_the_picture_has_a_bar_for_each_class_that_occurs(tmp_path, count):
    colors = [(40 + i, 250 - i, 3 * i % 256) for i in range(count)]
    classes = [LabelClass(i, f"group--of--class-{i}", color) for i, color in enumerate(colors)]
    shares = 0.9 ** np.arange(count, dtype=float)
    shares[2] = 0
    held = np.where(shares > 0, 0.5, 0)
    splits = {"training": shares, "validation": np.roll(shares, 1), "empty": np.zeros(count)}
    plot_audit(
        classes,
        splits,
        dict.fromkeys(splits, held),
        {"training": {(3000, 4000): 9, (30, 40): 1}, "validation": {}, "empty": {}},
        ["a note"],
        tmp_path / "audit.png",
    )
    picture = np.asarray(Image.open(tmp_path / "audit.png").convert("RGB"))
    assert picture.shape[0] > 600 + 14 * (count - 40)
    drawn = np.unique(picture.astype(np.int64) @ [65536, 256, 1])
    assert [i for i, c in enumerate(colors) if np.dot(c, [65536, 256, 1]) not in drawn] == [2]


def test_a_picture_of_nothing_but_void_is_drawn(tmp_path):
    nothing = {"training": np.zeros(4)}
    plot_audit(CLASSES, nothing, nothing, {"training": {(30, 40): 1}}, [], tmp_path / "audit.png")
    assert Image.open(tmp_path / "audit.png").height > 300
