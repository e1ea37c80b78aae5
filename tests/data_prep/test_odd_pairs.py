"""Odd names and folders: each pair is found once, or the fault is named."""

import ast
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data_prep.build_records import main
from mapseg.data.batches import read_samples
from mapseg.data.manifest import read_manifest
from mapseg.data.pairing import Suffixes, find_pairs
from mapseg.files import walk
from mapseg.labels import make_label_set, read_class_table

CLASSES = {"labels": [{"name": n, "color": [80 * i, 9, 0]} for i, n in enumerate("abc")]}


def save(path, seed=0, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    high, size = (256, (20, 30, 3)) if channels == 3 else (3, (20, 30))
    Image.fromarray(rng.integers(0, high, size, np.uint8)).save(path)


def save_pairs(root, *keys):
    for seed, key in enumerate(keys):
        save(root / "images" / f"{key}.jpg", seed)
        save(root / "labels" / f"{key}.png", seed, channels=1)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def build(root, *options, images="images", labels="labels", classes=None):
    return main(
        [
            "build_records",
            f"--image_dir={root / images}",
            f"--label_dir={root / labels}",
            f"--classes={classes or root / 'classes.json'}",
            "--split=training",
            f"--records_dir={root / 'r'}",
            "--workers=1",
            *options,
        ]
    )


def stored_keys(root):
    return [key.numpy().decode() for *_, key in read_samples(root / "r", "training")]


def reasons(root, suffixes=None, images="images", labels="labels"):
    return find_pairs(root / images, root / labels, suffixes)[1]


def test_hidden_files_and_folders_are_ignored(root):
    save_pairs(root, "a", "b/c")
    save(root / "images/.ipynb_checkpoints/a-checkpoint.jpg")
    save(root / "labels/.Trash-0/files/bad.png", channels=1)
    save(root / "images/._a.jpg")
    assert build(root) == 0
    assert stored_keys(root) == ["a", "b/c"]


def test_links_to_parent_folders_do_not_repeat_pairs(root):
    save_pairs(root, "a", "b/c")
    for name in ("images", "labels"):
        (root / name / "z_again").symlink_to(root / name)
        (root / name / "b" / "back").symlink_to(root / name)
        (root / name / "b" / "itself").symlink_to("itself")
    assert build(root) == 0
    assert stored_keys(root) == ["a", "b/c"]


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    save_pairs(root, "a", "b/c")
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(OSError, match=r"images/b: the folder must be readable; got: Permission"):
        list(walk(root / "images"))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_compared_in_one_unicode_form(root, forms):
    image, label = (unicodedata.normalize(form, "Zürich/Straße_é") for form in forms)
    save(root / f"images/{image}.jpg")
    save(root / f"labels/{label}.png", channels=1)
    assert build(root) == 0
    assert stored_keys(root) == [image]


def test_two_names_that_differ_only_in_unicode_form_are_refused(root):
    save_pairs(root, "a", *(unicodedata.normalize(form, "ü") for form in ("NFC", "NFD")))
    assert list(reasons(root)) == ["ü"]
    assert "must be the only file of its stem" in reasons(root)["ü"]


@pytest.mark.parametrize("odd", ["images", "labels"])
def test_names_that_are_not_utf8_are_named_or_left_out(root, odd, capfd):
    save_pairs(root, "a", "x")
    suffix = {"images": ".jpg", "labels": ".png"}[odd]
    (root / odd / f"x{suffix}").rename(root / odd / os.fsdecode(b"Z\xfcrich" + suffix.encode()))
    assert build(root) == 1
    assert rf"{odd}/Z\xfcrich{suffix}: the name must be UTF-8" in capfd.readouterr().err
    assert build(root, "--on_error=skip") == 0
    assert stored_keys(root) == ["a"]
    assert r"Z\xfcrich" in read_manifest(root / "r").splits["training"].left_out
    assert "pairs left out" in capfd.readouterr().out


def test_a_label_of_another_kind_is_named_with_the_supported_kinds(root, capsys):
    save_pairs(root, "a")
    save(root / "images/b.jpg")
    save(root / "labels/b.tif", channels=1)
    assert build(root) == 1
    message = capsys.readouterr().err
    assert "images/b.jpg: must have the label b.png in " in message
    assert "labels; got b.tif, but only *.png are read" in message


def test_an_image_of_another_kind_is_named_with_the_supported_kinds(root):
    save_pairs(root, "a")
    save(root / "images/b.bmp")
    save(root / "labels/b.png", channels=1)
    assert "must have the image b.jpg or b.jpeg or b.png in " in reasons(root)["b"]
    assert "images; got b.bmp, but only *.jpg, *.jpeg, *.png are read" in reasons(root)["b"]


def test_a_partner_in_other_case_is_named(root):
    save_pairs(root, "a")
    save(root / "images/IMG_1.JPG")
    save(root / "labels/img_1.png", channels=1)
    assert "got img_1.png, whose name differs in upper and lower case" in reasons(root)["IMG_1"]


def test_suffixes_in_other_case_are_read(root):
    save_pairs(root, "a")
    (root / "images/a.jpg").rename(root / "images/a.JPG")
    assert build(root) == 0


def test_one_folder_needs_suffixes(root, capsys):
    save(root / "both/a.jpg")
    save(root / "both/a.png", channels=1)
    one = {"images": "both", "labels": "both"}
    assert build(root, **one) == 1
    assert "Remedy: give --image_suffix and --label_suffix" in capsys.readouterr().err
    assert build(root, "--image_suffix=.jpg", **one) == 0
    assert stored_keys(root) == ["a"]


@pytest.mark.parametrize(
    ("names", "suffixes"),
    [
        (("a.png", "a_mask.png"), Suffixes(label="_mask.png")),
        (("a_image.png", "a.png"), Suffixes(image="_image.png")),
        (("a_im.png", "a_gt.PNG"), Suffixes("_im.png", "_gt.png")),
    ],
)
def test_suffixes_tell_images_from_labels_in_one_folder(root, names, suffixes):
    for channels, name in zip((3, 1), names, strict=True):
        save(root / "both" / name, channels=channels)
    (pair,), wrong = find_pairs(root / "both", root / "both", suffixes)
    assert (pair.key, pair.image_path.name, pair.label_path.name) == ("a", *names)
    assert not wrong


def test_the_layout_of_cityscapes(root):
    below = "aachen/aachen_000000_000019"
    for kind in ("labelIds", "instanceIds", "labelTrainIds"):
        save(root / f"gtFine/train/{below}_gtFine_{kind}.png", channels=1)
    (root / f"gtFine/train/{below}_gtFine_polygons.json").write_text("{}")
    save(root / f"leftImg8bit/train/{below}_leftImg8bit.png")
    options = ["--image_suffix=_leftImg8bit.png", "--label_suffix=_gtFine_labelIds.png"]
    folders = {"images": "leftImg8bit/train", "labels": "gtFine/train"}
    table = ROOT / "data_prep/cityscapes_34.json"
    assert build(root, *options, **folders, classes=table) == 0
    assert stored_keys(root) == [below]
    missing = root / f"gtFine/train/{below}_gtFine_labelIds.png"
    missing.unlink()
    wrong = reasons(root, Suffixes("_leftImg8bit.png", "_gtFine_labelIds.png"), **folders)
    assert list(wrong) == [below]
    names = (f"{Path(below).name}_gtFine_{kind}" for kind in ("instanceIds", "labelTrainIds"))
    read = "but only *_gtFine_labelIds.png are read"
    assert wrong[below].endswith(
        f"must have the label {below}_gtFine_labelIds.png in {root / 'gtFine/train'}; got "
        f"{'.png, '.join(names)}.png, {Path(below).name}_gtFine_polygons.json, {read}"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image_suffix=_left"], "image_suffix must be the end of file names, with .jpg or"),
        (["--label_suffix=_gt.tif"], "label_suffix must be the end of file names, with .png"),
        (["--image_suffix=_left.png"], "images: must contain images (_left.png); got a.jpg"),
    ],
)
def test_bad_suffixes_are_refused(root, capsys, options, message):
    save_pairs(root, "a")
    assert build(root, *options) == 1
    assert message in capsys.readouterr().err
    assert not (root / "r").exists()


def test_suffixes_are_for_plain_folders(root, capsys):
    command = ["build_records", f"--vistas_dir={root}", "--image_suffix=.png", "--records_dir=R"]
    assert main(command) == 1
    assert "vistas_dir must not be given together with image_suffix" in capsys.readouterr().err


def test_the_tables_of_cityscapes():
    whole = read_class_table(ROOT / "data_prep/cityscapes_34.json")
    short = read_class_table(ROOT / "data_prep/cityscapes_19.json")
    assert [c.id for c in whole] == list(range(34))
    assert [c.id for c in short] == [*range(19), 255]
    trained, again = make_label_set(whole, "all"), make_label_set(short, "all")
    assert trained.classes == again.classes
    assert trained.names[:3] == ("road", "sidewalk", "building")
    assert len(trained.names) == 19 and trained.names[-1] == "bicycle"
    assert trained.source_to_train[7] == 0 and trained.source_to_train[33] == 18


def test_a_table_is_used_by_its_path(root):
    save_pairs(root, "a")
    table = Path(shutil.copy(ROOT / "data_prep/cityscapes_19.json", root / "own.json"))
    assert build(root, classes=table) == 0
    assert len(read_manifest(root / "r").classes) == 20


def test_a_folder_whose_name_the_terminal_cannot_show_is_converted(root):
    folder = root / os.fsdecode(b"Z\xfcrich")
    folder.mkdir()
    save_pairs(folder, "a")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    options = {"image_dir": "images", "label_dir": "labels", "classes": "classes.json"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "data_prep.build_records", "--split=training", "--workers=1"),
            *(f"--{name}={folder / value}" for name, value in options.items()),
            f"--records_dir={folder / 'r'}",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"Z\udcfcrich/images" in done.stdout


def test_names_are_the_same_in_a_locale_of_another_encoding(root):
    keys = ["a", "straße/ü 1", unicodedata.normalize("NFD", "Zürich")]
    save_pairs(root, *keys)
    (root / "images" / "ö.jpg").touch()  # without a label: it is named
    find = f"""
from pathlib import Path
from mapseg.data.pairing import find_pairs
root = Path({str(root)!r})
pairs, wrong = find_pairs(root / "images", root / "labels")
print(ascii([[pair.key for pair in pairs], list(wrong)]))
"""
    convert = (
        *("-m", "data_prep.build_records", "--split=training", "--workers=2"),
        *(f"--{name}_dir={root / name}s" for name in ("image", "label")),
        *(f"--classes={root / 'classes.json'}", f"--records_dir={root / 'r'}"),
    )
    outputs = []
    for command in (("-c", find), convert, (*convert, "--on_error=skip")):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            capture_output=True,
            check=False,
        )
        outputs.append((done.returncode, done.stdout.decode(), done.stderr.decode()))
    (pairs, named, skipped) = outputs
    assert ast.literal_eval(pairs[1]) == [sorted(keys), ["ö"]]
    assert named[0] == 1
    assert "images/ö.jpg: must have the label ö.png in" in named[2]
    assert skipped[0] == 0, skipped
    assert sorted(stored_keys(root)) == sorted(keys)
