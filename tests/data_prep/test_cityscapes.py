"""The layout of Cityscapes, and the ids that its files are confused by."""

import shutil

import numpy as np
import pytest
from cityscapes_by_hand import CLASSES, write_cityscapes
from conftest import ROOT
from PIL import Image

from data_prep.build_records import main
from data_prep.sources import find_cityscapes
from mapseg.data.batches import read_samples
from mapseg.evaluation import score
from mapseg.labels import read_class_table

TABLES = {name: ROOT / f"data_prep/cityscapes_{name}.json" for name in ("19", "34")}


@pytest.fixture(scope="module")
def source_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes(root, images_per_city=1)
    return root


@pytest.fixture
def own_dir(source_dir, tmp_path):
    return shutil.copytree(source_dir, tmp_path / "own")


def build_folders(root, kind, table, records_dir, *options):
    return main(
        [
            "build_records",
            f"--image_dir={root / 'leftImg8bit/val'}",
            f"--label_dir={root / 'gtFine/val'}",
            "--image_suffix=_leftImg8bit.png",
            f"--label_suffix=_gtFine_{kind}.png",
            f"--classes={TABLES[table]}",
            "--split=validation",
            f"--records_dir={records_dir}",
            "--workers=1",
            *options,
        ]
    )


def test_a_folder_of_cityscapes_is_converted_by_one_command(source_dir, tmp_path, capsys):
    command = ["b", f"--cityscapes_dir={source_dir}", f"--records_dir={tmp_path}", "--workers=1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "34 classes" in printed and "skipped test: its public labels are dummies" in printed
    assert "suspicious samples: none" in printed
    for split, folder, city in (("training", "train", "zurich"), ("validation", "val", "munster")):
        *_, (_, label, key) = read_samples(tmp_path, split).as_numpy_iterator()
        name = f"{city}/{city}_000000_000019"
        assert key.decode() == name
        with Image.open(source_dir / f"gtFine/{folder}/{name}_gtFine_labelTrainIds.png") as file:
            np.testing.assert_array_equal(label, np.asarray(file))


def test_the_tables_are_those_of_cityscapes():
    official = pytest.importorskip(
        "cityscapesscripts.helpers.labels", reason="cityscapesscripts is not installed"
    )
    labels = [label for label in official.labels if label.id >= 0]  # a license plate has no id
    assert [(c.id, c.name, c.color, c.evaluate) for c in CLASSES] == [
        (label.id, label.name, label.color, not label.ignoreInEval) for label in labels
    ]
    trained = sorted((label.trainId, label.name) for label in labels if not label.ignoreInEval)
    short = [(c.id, c.name) for c in read_class_table(TABLES["19"])]
    assert short == [*trained, (255, "unlabeled")]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("gtFine", "got leftImg8bit, no gtFine/train. Remedy: unpack leftImg8bit_trainvaltest.zip"),
        ("leftImg8bit/val", "no leftImg8bit/val"),
        ("gtFine/val/munster", "munster_000000_000019_leftImg8bit.png: must have the label"),
        ("leftImg8bit/train/aachen", "aachen_000000_000019_gtFine_labelIds.png: must have the im"),
    ],
)
def test_a_missing_folder_is_named(own_dir, tmp_path, capsys, removed, message):
    shutil.rmtree(own_dir / removed)
    command = ["b", f"--cityscapes_dir={own_dir}", f"--records_dir={tmp_path / 'r'}"]
    assert main(command) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_labels_of_train_ids_only_are_named(own_dir, tmp_path, capsys):
    for kind in ("labelIds", "instanceIds", "color", "polygons"):
        for path in own_dir.rglob(f"*_gtFine_{kind}.*"):
            path.unlink()
    command = ["b", f"--cityscapes_dir={own_dir}", f"--records_dir={tmp_path / 'r'}"]
    stem = "aachen_000000_000019"
    reason = (
        f"{stem}_leftImg8bit.png: must have the label aachen/{stem}_gtFine_labelIds.png in "
        f"{own_dir / 'gtFine/train'}; got {stem}_gtFine_labelTrainIds.png, but only "
        "*_gtFine_labelIds.png are read (1 more have no pair)"
    )
    none = "there is no pair at all"
    remedy = "Remedy: unpack both archives there again (docs/cityscapes.md)"
    skip = ", or give --on_error=skip, which leaves out files without a pair if there are any pairs"
    for options, end in (
        ([], f". {remedy}{skip}\n"),
        (["--on_error=skip"], f"; {none}. {remedy}\n"),
    ):
        assert main([*command, *options]) == 1
        assert capsys.readouterr().err.endswith(reason + end)


def test_a_folder_without_the_test_split_is_complete(own_dir):
    for name in ("leftImg8bit", "gtFine"):
        shutil.rmtree(own_dir / name / "test")
    source = find_cityscapes(own_dir)
    assert ([split.name for split in source.splits], source.skipped) == (
        ["training", "validation"],
        {},
    )


@pytest.mark.parametrize("option", ["vistas_dir", "image_dir", "classes", "label_suffix"])
def test_cityscapes_excludes_other_sources(source_dir, capsys, option):
    command = ["b", f"--cityscapes_dir={source_dir}", "--records_dir=R", f"--{option}=x.png"]
    assert main(command) == 1
    first, second = sorted(("cityscapes_dir", option), key=lambda name: name != "vistas_dir")
    assert f"{first} must not be given together with {second}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "table", "message"),
    [
        ("labelIds", "19", "car is 26, got a table where car is 13. Remedy: give --classes=data_p"),
        ("labelTrainIds", "34", "car is 13, got a table where car is 26. Remedy: give --classes="),
        ("instanceIds", "34", "got 16-bit grey. Remedy: colour maps and instance maps are not lab"),
        ("color", "34", "got 8-bit RGBA"),
    ],
)
def test_labels_of_another_kind_are_refused(source_dir, tmp_path, capsys, kind, table, message):
    assert build_folders(source_dir, kind, table, tmp_path / "r") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r/manifest.json").exists()


@pytest.mark.parametrize(("kind", "table"), [("Ids", "19"), ("TrainIds", "34")])
def test_ids_that_both_kinds_share_are_not_enough(own_dir, tmp_path, capsys, kind, table):
    for path in own_dir.rglob(f"*_gtFine_label{kind}.png"):
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 18)).save(path)
    options = [f"label{kind}", table, tmp_path / "r", "--on_error=skip"]
    assert build_folders(own_dir, *options) == 1
    assert "got a table where car is" in capsys.readouterr().err


def test_train_ids_are_converted_with_their_table(source_dir, tmp_path):
    assert build_folders(source_dir, "labelTrainIds", "19", tmp_path / "r") == 0


def test_renamed_labels_of_another_kind_have_ids_outside_the_table(own_dir, tmp_path, capsys):
    for path in (own_dir / "gtFine").rglob("*_gtFine_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "ids")))
    assert build_folders(own_dir, "ids", "19", tmp_path / "r") == 1
    assert "ids must be in the class table (0-18, 255); got 19, 20" in capsys.readouterr().err


def test_scoring_refuses_labels_of_another_kind(source_dir, capsys):
    arguments = [
        f"--predictions={source_dir / 'gtFine/val'}",
        "--prediction_suffix=_gtFine_labelTrainIds.png",
        f"--labels={source_dir / 'gtFine/val'}",
        "--label_suffix=_gtFine_labelIds.png",
    ]
    assert score.main(["score", *arguments, f"--classes={TABLES['19']}"]) == 1
    assert "a label named *_labelIds.png must have the ids of" in capsys.readouterr().err
    assert score.main(["score", *arguments, f"--classes={TABLES['34']}"]) == 1
    assert "--prediction_ids=train" in capsys.readouterr().err  # 255 is no label id
    train = [*arguments, f"--classes={TABLES['34']}", "--prediction_ids=train"]
    assert score.main(["score", *train]) == 0
    assert "mean IoU 100.0" in capsys.readouterr().out
