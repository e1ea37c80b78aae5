import dataclasses
import filecmp
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data_prep import canvas, make_sample
from data_prep.make_sample import make_key, write_sample
from data_prep.scenes import TRAINING, VALIDATION, draw_scene

SPLITS = ("training", "validation")
COUNTS = {"training": 4, "validation": 8, "testing": 1, "frames": 3}
REAL_CONFIG = ROOT.parent / "shared/data/mapillary_sample/config_v1.2.json"


def files(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def pairs(folder, split):
    for path in sorted((folder / split / "images").iterdir()):
        labels = (folder / split / kind / f"{path.stem}.png" for kind in ("labels", "instances"))
        yield path, *labels


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("sample") / "vistas"
    write_sample(out_dir, COUNTS, 7, lambda line: None)
    return out_dir


@pytest.fixture(scope="module")
def config(sample):
    return json.loads((sample / "config_v1.2.json").read_text())


def test_layout_is_that_of_vistas_and_kitti(sample):
    for split in SPLITS:
        assert len(list(pairs(sample, split))) == COUNTS[split]
        for paths in pairs(sample, split):
            assert re.fullmatch(r"[A-Za-z0-9_-]{22}\.jpg", paths[0].name)
            assert all(p.is_file() for p in paths)
    assert [p.parts[1] for p in files(sample) if p.parts[0] == "testing"] == ["images"]
    data = "frames/2011_09_26/2011_09_26_drive_0001_sync/image_02/data"
    assert [p.name for p in files(sample / data)] == [f"{i:010d}.png" for i in range(3)]
    assert len(files(sample)) == 1 + 3 * (4 + 8) + 1 + 3


def test_some_keys_begin_with_a_dash(sample):
    first = {path.name[0] for split in SPLITS for path, *_ in pairs(sample, split)}
    assert {"-", "_"} <= first


def test_config_has_the_classes_of_vistas(config):
    labels = config["labels"]
    assert len(labels) == 66
    assert sum(label["evaluate"] for label in labels) == 65
    assert [labels[i]["name"] for i in (13, 24, 27, 55, 65)] == [
        "construction--flat--road",
        "marking--general",
        "nature--sky",
        "object--vehicle--car",
        "void--unlabeled",
    ]
    for label in labels:
        assert set(label) == {"name", "readable", "instances", "evaluate", "color"}


@pytest.mark.skipif(not REAL_CONFIG.is_file(), reason="no ../shared/data/mapillary_sample")
def test_config_equals_the_real_one(config):
    assert config == json.loads(REAL_CONFIG.read_text())


@pytest.mark.parametrize("split", SPLITS)
def test_label_pixels_are_palette_indexes(sample, config, split):
    colors = [tuple(label["color"]) for label in config["labels"]]
    for image_path, label_path, instance_path in pairs(sample, split):
        image, label = Image.open(image_path), Image.open(label_path)
        instance = np.asarray(Image.open(instance_path))
        ids = np.asarray(label)
        assert (image.mode, label.mode, instance.dtype) == ("RGB", "P", np.uint16)
        assert image.size == label.size == instance.shape[::-1]
        assert ids.max() < 66
        shown = np.asarray(label.convert("RGB"))
        np.testing.assert_array_equal(shown, np.array(colors, np.uint8)[ids])
        np.testing.assert_array_equal(instance // 256, ids)
        counted = np.array([entry["instances"] for entry in config["labels"]])
        assert not (instance % 256)[~counted[ids]].any()


def test_sizes_differ_and_some_are_portrait(sample):
    for split in SPLITS:
        sizes = {Image.open(path).size for path, *_ in pairs(sample, split)}
        assert len(sizes) >= 3
        assert any(height > width for width, height in sizes)
        assert any(height < width for width, height in sizes)


def test_frames_are_wide(sample):
    for path in sample.rglob("0*.png"):
        assert np.asarray(Image.open(path)).shape == (188, 621, 3)


def test_camera_drives_through_one_scene():
    scenes = [draw_scene(VALIDATION, (94, 310), (1, 3), frame) for frame in (0, 1, 8)]
    start, soon, late = (label for _, label, _ in scenes)
    standing = np.isin(start, [canvas.POLE, canvas.SIGN])
    moved = [(start != label)[standing].mean() for label in (soon, late)]
    assert 0.2 < moved[0] < moved[1]
    sky = (start == canvas.SKY) & (late == canvas.SKY)
    assert np.abs(scenes[0][0].astype(int) - scenes[2][0])[sky].mean() < 12  # only noise


def test_each_split_shows_the_main_classes(sample):
    common = {2, 13, 15, 17, 24, 27, 29, 30, 45, 50, 55}
    for split in SPLITS:
        ids_by_scene = [set(np.unique(Image.open(path))) for _, path, _ in pairs(sample, split)]
        assert common <= set.union(*ids_by_scene)
        assert sum(24 in ids for ids in ids_by_scene) >= 0.8 * len(ids_by_scene)


def test_classes_of_many_scenes_are_about_twenty():
    ids_by_scene = [set(np.unique(draw_scene(TRAINING, (240, 320), (1, i))[1])) for i in range(20)]
    assert 17 <= len(set.union(*ids_by_scene)) <= 21
    for kind in set.union(*ids_by_scene):
        assert sum(kind in ids for ids in ids_by_scene) >= 5, f"class {kind} is too rare to learn"


def test_lane_markings_are_wide_in_the_foreground():
    for index in range(4):
        label = draw_scene(VALIDATION, (288, 384), (2, index))[1]
        near = label[200:240] == canvas.MARKING
        runs = np.diff(np.flatnonzero(np.diff(np.pad(near, ((0, 0), (1, 1))).ravel()))).tolist()[
            ::2
        ]
        assert max(runs) >= 4


def test_two_cars_are_two_instances(sample):
    numbers = [
        {n for n in np.unique(Image.open(path)).tolist() if n // 256 == canvas.CAR}
        for split in SPLITS
        for _, _, path in pairs(sample, split)
    ]
    assert max(map(len, numbers)) >= 2
    assert all(n % 256 < 100 for instances in numbers for n in instances)


def test_image_and_label_show_the_same_things():
    image, label, _ = draw_scene(TRAINING, (288, 384), (3, 1))
    brightness = image.mean(axis=-1)
    assert brightness[label == canvas.MARKING].mean() > 1.4 * brightness[label == 13].mean()
    sky, plants = (image[label == kind].mean(axis=0) for kind in (27, 30))
    assert sky[2] > sky[0]
    assert plants[1] > max(plants[0], plants[2])


def test_validation_shares_no_setting_with_training():
    for field in dataclasses.fields(TRAINING):
        ours, theirs = getattr(TRAINING, field.name), getattr(VALIDATION, field.name)
        if field.name == "facades":
            assert not set(ours) & set(theirs)
        else:
            assert ours[1] < theirs[0] or theirs[1] < ours[0], field.name


def test_same_seed_gives_same_bytes_and_fewer_scenes_are_the_first_of_more(sample, tmp_path):
    write_sample(tmp_path, dict.fromkeys(COUNTS, 1), 7, lambda line: None)
    assert len(files(tmp_path)) == 1 + 2 * 3 + 1 + 1
    same, _, _ = filecmp.cmpfiles(tmp_path, sample, files(tmp_path), shallow=False)
    assert same == files(tmp_path)


def test_another_seed_or_split_gives_another_scene_and_key():
    scenes = [draw_scene(TRAINING, (60, 80), seed)[0] for seed in ((1, 0, 0), (2, 0, 0), (1, 1, 0))]
    assert (scenes[0] != scenes[1]).any() and (scenes[0] != scenes[2]).any()
    names = {make_key(seed, split, i) for seed in (1, 2) for split in SPLITS for i in range(50)}
    assert len(names) == 200


def test_a_folder_in_use_is_refused_and_kept(tmp_path):
    (tmp_path / "D").mkdir()
    (tmp_path / "D/mine.txt").write_text("mine")
    command = [sys.executable, "-m", "data_prep.make_sample", f"--out_dir={tmp_path / 'D'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: out_dir must be new or an empty folder; got ")
    assert str(tmp_path / "D") in done.stderr
    assert "Remedy" in done.stderr
    assert files(tmp_path) == [Path("D/mine.txt")]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(make_sample.SPLITS, "validation", None)
    with pytest.raises(AttributeError):
        write_sample(tmp_path / "D", dict.fromkeys(COUNTS, 1), 7, lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_command_follows_its_flags(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(make_sample, "DRIVE_FRAMES", 1)
    (tmp_path / "D").mkdir()  # an empty folder is accepted
    counts = ["--training=1", "--validation=0", "--testing=0", "--frames=2", "--seed=3"]
    assert make_sample.main(["make_sample", f"--out_dir={tmp_path / 'D'}", *counts]) == 0
    assert len(files(tmp_path / "D")) == 1 + 3 + 2
    drives = [path.parts[1] for path in files(tmp_path / "D/frames")]
    assert drives == [f"2011_09_26_drive_{number}_sync" for number in ("0001", "0002")]
    assert "training: 1" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--training=-1", "--seed=-1", "--nonsense=1", "stray", ""])
def test_bad_flags_are_errors(tmp_path, capsys, flag):
    out_dir = [f"--out_dir={tmp_path / 'D'}"] if flag else []
    assert make_sample.main(["make_sample", *out_dir, flag]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "D").exists()


def test_command_starts_without_tensorflow():
    program = "import sys, data_prep.make_sample; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
