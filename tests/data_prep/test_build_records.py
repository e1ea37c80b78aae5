import fcntl
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHARED
from PIL import Image

from data_prep import convert, workers
from data_prep.build_records import main
from data_prep.conversion import build_records
from data_prep.convert import Resize
from data_prep.plan import partition
from data_prep.sources import find_pairs, find_vistas
from mapseg import charts
from mapseg.data.batches import read_samples
from mapseg.data.manifest import read_manifest
from mapseg.data.resizing import resize_label
from mapseg.data.shards import read_shard
from mapseg.labels import VOID

DATA = SHARED / "data"
needs_shared = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")

NAMES = ("road", "car", "sky", "unlabeled")
KEYS = ("-a", "_b", "c.d", "e", "f")


def class_table(names=NAMES):
    return {
        "labels": [
            {"name": name, "color": [20 * i, 9, 9], "evaluate": name != "unlabeled"}
            for i, name in enumerate(names)
        ]
    }


def ids_of(seed, size=(30, 40), count=4):
    return np.random.default_rng(seed).integers(0, count, size, np.uint8)


def save_image(path, seed, size=(30, 40), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def save_label(path, ids, palette=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:  # its colours carry no class information
        image = image.convert("P")
        image.putpalette(bytes(255 - i // 3 for i in range(768)))
        image.paste(Image.fromarray(ids))
    image.save(path)


def save_pair(image_path, label_path, seed, size=(30, 40)):
    save_image(image_path, seed, size)
    save_label(label_path, ids_of(seed, size))


@pytest.fixture(autouse=True)
def picture(monkeypatch):
    """Skips the audit's picture, which is slower than these conversions; see test_audit.py."""
    monkeypatch.setattr(charts, "plot_audit", lambda *_, **__: _[-1].write_bytes(b"picture"))


@pytest.fixture
def vistas_dir(tmp_path):
    folder = tmp_path / "vistas"
    for split, keys in (("training", KEYS), ("validation", KEYS[:2])):
        for seed, key in enumerate(keys):
            save_pair(
                folder / split / "images" / f"{key}.jpg",
                folder / split / "labels" / f"{key}.png",
                seed,
                (30, 40) if seed else (50, 20),
            )
    save_image(folder / "testing/images/t.jpg", 9)
    (folder / "config_v1.2.json").write_text(json.dumps(class_table()))
    return folder


def convert_vistas(vistas_dir, records_dir, *options):
    return main(
        ["", f"--vistas_dir={vistas_dir}", f"--records_dir={records_dir}", "--workers=1", *options]
    )


def error_line(capsys):
    """The only line on the error output that is not progress."""
    return only_error(capsys.readouterr().err)


def only_error(text):
    """The only line that is not progress; a slow machine reports pairs too."""
    progress = re.compile(r"to write: about|\d+/\d+ pairs")
    (line,) = (line for line in text.splitlines() if not progress.match(line))
    assert line.startswith(("error: ", "interrupted"))
    return line


def stored(records_dir, split):
    """Decoded records: {key: (features, ids)}."""
    records = {}
    for shard in read_manifest(records_dir).split(split).shards:
        for record in read_shard(records_dir / shard.file):
            features = tf.train.Example.FromString(record).features.feature
            label = features["image/segmentation/class/encoded"].bytes_list.value[0]
            ids = tf.io.decode_png(label, channels=1)[..., 0].numpy()
            records[features["image/filename"].bytes_list.value[0].decode()] = features, ids
    return records


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}


@pytest.mark.addons
def test_vistas_is_converted_and_read_back(vistas_dir, tmp_path, capsys):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert "skipped testing" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "r")
    assert sorted(manifest.splits) == ["training", "validation"]
    assert list(manifest.skipped) == ["testing"]
    assert [c.name for c in manifest.classes] == list(NAMES)
    training = manifest.split("training")
    assert training.samples == 5
    assert training.sizes == {(30, 40): 4, (50, 20): 1}
    counts = sum(np.bincount(ids_of(i, (30, 40) if i else (50, 20)).ravel()) for i in range(5))
    assert training.pixels == dict(zip(NAMES, counts.tolist(), strict=True))
    samples = list(read_samples(tmp_path / "r", "training"))
    assert [name.numpy().decode() for *_, name in samples] == sorted(KEYS)
    for i, (image, label, name) in enumerate(samples):
        ids = ids_of(i, (30, 40) if i else (50, 20))
        np.testing.assert_array_equal(label, np.where(ids == 3, VOID, ids))
        path = vistas_dir / "training/images" / f"{name.numpy().decode()}.jpg"
        np.testing.assert_array_equal(image, np.asarray(Image.open(path)))


def test_images_keep_their_bytes(vistas_dir, tmp_path):
    save_image(vistas_dir / "training/images/e.jpg", 1, mode="L")
    (vistas_dir / "training/images/f.jpg").unlink()
    save_image(vistas_dir / "training/images/f.png", 1)
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    records = stored(tmp_path / "r", "training")
    assert sorted(records) == sorted(KEYS)
    for pair in find_pairs(vistas_dir / "training/images", vistas_dir / "training/labels")[0]:
        features, _ = records[pair.key]
        assert features["image/encoded"].bytes_list.value[0] == pair.image_path.read_bytes()
    assert records["f"][0]["image/format"].bytes_list.value[0] == b"png"
    assert records["e"][0]["image/channels"].int64_list.value[0] == 1
    assert records["-a"][0]["image/height"].int64_list.value[0] == 50


def nested(folder, versions):
    for version in versions:
        names = NAMES if version == "v1.2" else (*NAMES, "lane")
        (folder / f"config_{version}.json").write_text(json.dumps(class_table(names)))
        for seed in range(2):
            save_image(folder / f"training/images/k{seed}.jpg", seed)
            ids = np.full((30, 40), len(names) - 1, np.uint8)
            save_label(folder / f"training/{version}/labels/k{seed}.png", ids)
            save_label(folder / f"training/{version}/instances/k{seed}.png", ids)
    return folder


@pytest.mark.parametrize(
    ("versions", "options", "highest"),
    [
        (["v2.0"], [], 4),
        (["v1.2", "v2.0"], [], 3),
        (["v1.2", "v2.0"], ["--label_version=v2.0"], 4),
    ],
)
def test_the_nested_layout(tmp_path, capsys, versions, options, highest):
    (tmp_path / "v").mkdir()
    assert convert_vistas(nested(tmp_path / "v", versions), tmp_path / "r", *options) == 0
    assert {int(ids.max()) for _, ids in stored(tmp_path / "r", "training").values()} == {highest}
    assert len(read_manifest(tmp_path / "r").classes) == highest + 1
    reported = "exist too: --label_version" in capsys.readouterr().out
    assert reported == (len(versions) == 2)


def test_a_missing_version_is_refused(vistas_dir):
    (vistas_dir / "config_v1.2.json").rename(vistas_dir / "config.json")  # as in older archives
    assert find_vistas(vistas_dir).label_version == "v1.2"
    with pytest.raises(ValueError, match=r"one that exists here, v1\.2; got v2\.0"):
        find_vistas(vistas_dir, "v2.0")


def folder_options(folder, split, classes):
    return [
        f"--image_dir={folder / 'images'}",
        f"--label_dir={folder / 'labels'}",
        f"--classes={classes}",
        f"--split={split}",
    ]


def test_plain_folders_add_split_after_split(vistas_dir, tmp_path, capsys):
    records, classes = f"--records_dir={tmp_path / 'r'}", vistas_dir / "config_v1.2.json"
    nested_path = vistas_dir / "training/{}/sub/x.png"
    save_pair(*(Path(str(nested_path).format(kind)) for kind in ("images", "labels")), 7)
    (vistas_dir / "training/images/.DS_Store").touch()
    assert main(["", *folder_options(vistas_dir / "training", "train", classes), records]) == 0
    assert main(["", *folder_options(vistas_dir / "validation", "val", classes), records]) == 0
    manifest = read_manifest(tmp_path / "r")
    assert {name: s.samples for name, s in manifest.splits.items()} == {"train": 6, "val": 2}
    assert "sub/x" in stored(tmp_path / "r", "train")
    before = content(tmp_path / "r")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(class_table((*NAMES, "lane"))))
    capsys.readouterr()
    assert main(["", *folder_options(vistas_dir / "validation", "more", other), records]) == 1
    assert "class table" in capsys.readouterr().err
    assert content(tmp_path / "r") == before


def test_the_result_does_not_depend_on_the_workers(vistas_dir, tmp_path):
    for number in (1, 2):
        build_records(find_vistas(vistas_dir), tmp_path / f"{number}", Resize(), number, print)
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_a_worker_names_the_broken_file_too(vistas_dir, tmp_path):
    (vistas_dir / "validation/labels/_b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"_b\.png"):
        build_records(find_vistas(vistas_dir), tmp_path / "r", Resize(), 2, print)
    assert_nothing_half_written(tmp_path / "r")


def assert_nothing_half_written(records_dir):
    assert not (records_dir / "manifest.json").exists()
    assert not list(records_dir.rglob("*partial*"))


@pytest.mark.parametrize("stop_at", range(1, 7))
def test_an_interrupted_conversion_resumes(vistas_dir, tmp_path, monkeypatch, capsys, stop_at):
    assert convert_vistas(vistas_dir, tmp_path / "whole") == 0
    converted = []
    original = convert.convert_pair

    def interrupted(pair, *args):
        if len(converted) == stop_at:
            raise KeyboardInterrupt
        converted.append(pair.key)
        return original(pair, *args)

    monkeypatch.setattr(convert, "convert_pair", interrupted)
    capsys.readouterr()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 130
    assert "interrupted" in error_line(capsys)
    assert_nothing_half_written(tmp_path / "r")
    finished = content(tmp_path / "r")
    stop_at = 99
    converted.clear()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert finished.items() <= content(tmp_path / "r").items()
    assert len(converted) + len([name for name in finished if name.endswith("record")]) == 7
    assert content(tmp_path / "r") == content(tmp_path / "whole")


def test_finished_records_are_not_changed(vistas_dir, tmp_path, capsys):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "r").glob("*.*")}
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "r").glob("*.*")} == before


def test_a_lost_shard_is_made_again(vistas_dir, tmp_path):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    before = content(tmp_path / "r")
    next((tmp_path / "r").glob("training-*")).unlink()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert content(tmp_path / "r") == before


def test_a_lost_manifest_is_made_again(vistas_dir, tmp_path):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    before = content(tmp_path / "r")
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "r").glob("*.tfrecord")}
    (tmp_path / "r/manifest.json").unlink()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert content(tmp_path / "r") == before
    assert {p: p.stat().st_mtime_ns for p in written} == written


def test_a_damaged_manifest_does_not_get_a_new_checksum(vistas_dir, tmp_path, capsys):
    classes = vistas_dir / "config_v1.2.json"
    folders = {
        split: [
            *folder_options(vistas_dir / split, split, classes),
            f"--records_dir={tmp_path / 'r'}",
        ]
        for split in ("training", "validation")
    }
    assert main(["", *folders["training"]]) == 0
    path = tmp_path / "r/manifest.json"
    path.write_text(path.read_text().replace('"30x40": 4', '"30x40": 5'))
    before = content(tmp_path / "r")
    assert main(["", *folders["validation"]]) == 1
    assert "manifest.json: must be as it was written" in capsys.readouterr().err
    assert content(tmp_path / "r") == before


def misread(path):
    """Changes a digit of a label's pixel counts in a part."""
    text = path.read_text()
    path.write_text(
        re.sub(r'("pixels": \{"\d": )(\d)', lambda m: f"{m[1]}{int(m[2]) % 9 + 1}", text)
    )
    assert path.read_text() != text


@pytest.mark.parametrize("damage", [misread, Path.unlink, lambda path: path.write_text("{")])
@pytest.mark.parametrize("finished", [True, False])
def test_a_shard_without_its_notes_is_made_again(vistas_dir, tmp_path, damage, finished):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    before = content(tmp_path / "r")
    damage(next((tmp_path / "r/.parts").glob("training-00002*")))
    if not finished:
        (tmp_path / "r/manifest.json").unlink()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert content(tmp_path / "r") == before


def test_other_options_and_input_are_refused_without_notes_too(vistas_dir, tmp_path, capsys):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    (tmp_path / "r/.parts/training-00000-of-00005.tfrecord.json").unlink()
    save_pair(vistas_dir / "training/images/e.jpg", vistas_dir / "training/labels/e.png", 77)
    before = content(tmp_path / "r")
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    assert "1 pairs differ, the first is e" in capsys.readouterr().err
    assert content(tmp_path / "r") == before
    shutil.rmtree(tmp_path / "r/.parts")
    before = content(tmp_path / "r")
    assert convert_vistas(vistas_dir, tmp_path / "r", "--max_side=30") == 1
    assert "max_side was 0; got 30" in capsys.readouterr().err
    save_pair(vistas_dir / "training/images/g.jpg", vistas_dir / "training/labels/g.png", 7)
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1  # six shards instead of five
    assert "its source has changed since" in capsys.readouterr().err
    assert content(tmp_path / "r") == before


def test_a_copy_of_records_without_notes_refuses_other_data(vistas_dir, tmp_path, capsys):
    """From 16 pairs on, other data may have as many shards, of the same names."""
    for n in range(20):
        folder = vistas_dir / "validation"
        save_pair(folder / f"images/{n}.jpg", folder / f"labels/{n}.png", n)
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    shutil.rmtree(tmp_path / "r/.parts")  # as by cp -r r/* copy
    before = content(tmp_path / "r")
    for kind in ("images/7.jpg", "labels/7.png"):
        (vistas_dir / "validation" / kind).unlink()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    pattern = (
        r"its source has changed since: validation-000\d\d-of-00016.tfrecord had \d samples; got"
    )
    assert re.search(pattern, capsys.readouterr().err)
    assert {k: v for k, v in content(tmp_path / "r").items() if "lock" not in str(k)} == before


def test_finished_records_refuse_other_options_and_other_input(vistas_dir, tmp_path, capsys):
    assert convert_vistas(vistas_dir, tmp_path / "r", "--max_side=20") == 0
    before = content(tmp_path / "r")
    assert convert_vistas(vistas_dir, tmp_path / "r", "--max_side=30") == 1
    assert "max_side was 20; got 30" in capsys.readouterr().err
    save_pair(vistas_dir / "training/images/e.jpg", vistas_dir / "training/labels/e.png", 77)
    assert convert_vistas(vistas_dir, tmp_path / "r", "--max_side=20") == 1
    assert "1 pairs differ, the first is e" in capsys.readouterr().err
    assert content(tmp_path / "r") == before


def test_a_copy_of_the_data_is_the_same_data(vistas_dir, tmp_path, capsys):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    before = content(tmp_path / "r")
    for path in vistas_dir.rglob("*.*"):
        os.utime(path, ns=(0, 0))  # as after a download or a copy
    capsys.readouterr()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert "comparing 1 pairs that have new times by content" in capsys.readouterr().err
    assert content(tmp_path / "r") == before


def test_a_copy_of_the_data_resumes_a_conversion(vistas_dir, tmp_path):
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    before = content(tmp_path / "r")
    (tmp_path / "r/manifest.json").unlink()
    (tmp_path / "r/training-00002-of-00005.tfrecord").unlink()
    kept = tmp_path / "r/training-00001-of-00005.tfrecord"
    written = kept.stat().st_mtime_ns
    for path in vistas_dir.rglob("*.*"):
        os.utime(path, ns=(0, 0))
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert kept.stat().st_mtime_ns == written
    assert {p: c for p, c in content(tmp_path / "r").items() if ".parts" not in str(p)} == {
        p: c for p, c in before.items() if ".parts" not in str(p)
    }


@pytest.mark.parametrize("name", ["images/e.jpg", "labels/e.png"])
def test_other_content_of_the_same_size_is_refused(vistas_dir, tmp_path, capsys, name):
    path = vistas_dir / "training" / name
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    before = content(tmp_path / "r")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    assert "1 pairs differ, the first is e" in capsys.readouterr().err
    assert content(tmp_path / "r") == before


def test_unfinished_records_take_other_input(vistas_dir, tmp_path):
    broken = vistas_dir / "validation/images/_b.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-40])
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    assert len(list((tmp_path / "r").glob("*.tfrecord"))) == 6
    broken.write_bytes(whole)
    (vistas_dir / "training/images/e.jpg").unlink()
    (vistas_dir / "training/labels/e.png").unlink()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert convert_vistas(vistas_dir, tmp_path / "again") == 0
    assert content(tmp_path / "r") == content(tmp_path / "again")


def killed_after(secs, arguments):
    """Runs the command in new processes and kills all of them; returns whether it had to."""
    command = [sys.executable, "-m", "data_prep.build_records", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
    try:
        assert process.wait(secs) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def test_a_conversion_killed_at_six_times_has_the_same_result(tmp_path):
    source, chance = tmp_path / "source", random.Random(4)
    for seed in range(12):
        names = f"train/images/{seed}.jpg", f"train/labels/{seed}.png"
        save_pair(*(source / name for name in names), seed, (300, 400))
    (source / "config.json").write_text(json.dumps(class_table()))
    (source / "train/images/12.jpg").write_bytes(b"broken")
    save_label(source / "train/labels/12.png", ids_of(1))
    options = [f"--vistas_dir={source}", "--workers=2", "--on_error=skip"]
    started = time.monotonic()
    assert not killed_after(1200, [*options, f"--records_dir={tmp_path / 'whole'}"])
    length = time.monotonic() - started
    expected = content(tmp_path / "whole")
    moments = [length * (i + chance.random()) / 6 for i in range(6)]
    chance.shuffle(moments)
    records_dir = tmp_path / "r"
    for moment in moments:
        while not killed_after(moment, [*options, f"--records_dir={records_dir}"]):
            # Finished before the kill; this may happen every time if the machine was slower
            # while `length` was measured.
            assert content(records_dir) == expected
            shutil.rmtree(records_dir)
            moment *= 0.8
    assert not killed_after(1200, [*options, f"--records_dir={records_dir}"])
    assert content(records_dir) == expected


def test_a_full_disk_ends_in_one_line_and_the_conversion_resumes(vistas_dir, tmp_path):
    large = (vistas_dir / "training" / name for name in ("images/c.d.jpg", "labels/c.d.png"))
    save_pair(*large, 5, (300, 400))
    assert convert_vistas(vistas_dir, tmp_path / "whole") == 0
    options = [f"--vistas_dir={vistas_dir}", f"--records_dir={tmp_path / 'r'}", "--workers=2"]
    # Files are limited to 32 kB: a write beyond that fails midway, as on a full disk.
    limited = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768)); "
        "runpy.run_module('data_prep.build_records', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", limited, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    error = only_error(result.stderr)
    assert "training-00001-of-00003.tfrecord: cannot be written: File too large" in error
    assert "Remedy: raise the limit of a file's size (ulimit -f)" in error
    assert_nothing_half_written(tmp_path / "r")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").glob("*.tfrecord")}
    assert main(["", *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert content(tmp_path / "r") == content(tmp_path / "whole")


def spoil_some(vistas_dir):
    """Damages three of training's five pairs: a broken image, no label, two images."""
    folder = vistas_dir / "training"
    truncated(folder / "images/e.jpg")
    (folder / "labels/-a.png").unlink()
    save_image(folder / "images/_b.png", 3)
    (folder / "labels/link.png").symlink_to("nowhere")


def test_skip_leaves_out_and_reports_pairs_that_cannot_be_converted(vistas_dir, tmp_path, capsys):
    spoil_some(vistas_dir)
    assert convert_vistas(vistas_dir, tmp_path / "r", "--on_error=skip") == 0
    split = read_manifest(tmp_path / "r").split("training")
    assert list(split.left_out) == ["-a", "_b", "e", "link"]
    for key, reason in (
        ("-a", "images/-a.jpg: must have the label -a.png"),
        ("_b", "images/_b.png: must be the only file of its stem; got also _b.jpg"),
        ("e", "images/e.jpg: must be a valid JPEG or PNG image; got: Premature end of JPEG file"),
        ("link", "labels/link.png: must be a file; got a broken link"),
    ):
        assert reason in split.left_out[key]
        assert "\n" not in split.left_out[key]
        assert "Remedy" not in split.left_out[key]
    out = capsys.readouterr().out
    assert "training: 4 pairs left out:\n" in out
    assert out.count("to retry the pairs left out: the same command with --on_error=stop") == 1
    assert all(reason in out for reason in split.left_out.values())
    assert sorted(stored(tmp_path / "r", "training")) == ["c.d", "f"]
    audit = json.loads((tmp_path / "r/audit.json").read_text())
    assert audit["splits"]["training"]["left_out"] == split.left_out
    assert convert_vistas(vistas_dir, tmp_path / "r", "--on_error=skip") == 0
    assert "nothing to do" in capsys.readouterr().err
    before = content(tmp_path / "r")
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1  # on_error=stop still fails
    assert "-a.jpg" in error_line(capsys)
    for name in ("labels/link.png", "images/-a.jpg", "images/_b.png", "images/_b.jpg"):
        (vistas_dir / "training" / name).unlink()
    (vistas_dir / "training/labels/_b.png").unlink()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    assert "e.jpg" in error_line(capsys)
    assert content(tmp_path / "r") == before


@pytest.mark.parametrize("on_error", ["skip", "stop"])
def test_a_file_that_was_left_out_can_be_repaired(vistas_dir, tmp_path, on_error):
    path = vistas_dir / "training/images/c.d.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])  # this shifts the shard boundaries
    assert convert_vistas(vistas_dir, tmp_path / "r", "--on_error=skip") == 0
    assert list(read_manifest(tmp_path / "r").split("training").left_out) == ["c.d"]
    path.write_bytes(whole)
    assert convert_vistas(vistas_dir, tmp_path / "r", f"--on_error={on_error}") == 0
    assert read_manifest(tmp_path / "r").split("training").left_out == {}
    assert convert_vistas(vistas_dir, tmp_path / "fresh") == 0
    assert content(tmp_path / "r") == content(tmp_path / "fresh")


def test_pairs_left_out_for_a_temporary_reason_are_converted_later(
    vistas_dir, tmp_path, monkeypatch
):
    assert convert_vistas(vistas_dir, tmp_path / "whole") == 0

    def refused(path):
        if path.name == "c.d.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return path.open("rb").read()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        assert convert_vistas(vistas_dir, tmp_path / "r", "--on_error=skip") == 0
    left_out = read_manifest(tmp_path / "r").split("training").left_out
    assert left_out["c.d"].endswith("c.d.jpg: must be readable; got: Permission denied.")
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert content(tmp_path / "r") == content(tmp_path / "whole")


def test_a_split_without_valid_pairs_is_an_error(vistas_dir, tmp_path, capsys):
    for name in ("images/-a.jpg", "images/_b.jpg"):
        truncated(vistas_dir / "validation" / name)
    assert convert_vistas(vistas_dir, tmp_path / "r", "--on_error=skip") == 1
    error = error_line(capsys)
    assert "validation must have a pair that can be converted; got 2 pairs, all left out" in error
    assert "-a.jpg: must be a valid JPEG" in error
    assert "Remedy: repair the files" in error
    manifest = read_manifest(tmp_path / "r")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"training": 5}
    assert list(manifest.skipped) == ["testing", "validation"]
    for name in ("images/-a.jpg", "images/_b.jpg"):
        save_image(vistas_dir / "validation" / name, 1, (50, 20) if "-a" in name else (30, 40))
    assert convert_vistas(vistas_dir, tmp_path / "r", "--on_error=skip") == 0
    assert sorted(read_manifest(tmp_path / "r").splits) == ["training", "validation"]


def test_a_source_without_valid_pairs_has_no_manifest(vistas_dir, tmp_path, capsys):
    truncated(vistas_dir / "validation/images/-a.jpg")
    truncated(vistas_dir / "validation/images/_b.jpg")
    options = folder_options(vistas_dir / "validation", "val", vistas_dir / "config_v1.2.json")
    for _ in range(2):
        assert main(["", *options, f"--records_dir={tmp_path / 'r'}", "--on_error=skip"]) == 1
        assert "split val must have a pair that can be converted" in error_line(capsys)
        assert_nothing_half_written(tmp_path / "r")


def test_disk_space_is_checked_before_anything_is_written(
    vistas_dir, tmp_path, monkeypatch, capsys
):
    usage, asked, free = namedtuple("usage", "free"), [], 67 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(free))
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    line = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(r"to write: about 3\d\.\d kB in 7 shards; 70\.3 MB are free", line)
    assert asked[0] == tmp_path
    free = 60 << 20
    next((tmp_path / "r").glob("training-*")).unlink()
    before = content(tmp_path / "r")
    for records_dir in ("r", "new"):
        assert convert_vistas(vistas_dir, tmp_path / records_dir) == 1
        error = error_line(capsys)
        assert re.search(r"about 67\.1 MB must be free on its disk; got 62\.9 MB\. Remedy", error)
    assert content(tmp_path / "r") == before
    assert not (tmp_path / "new").exists()


def test_a_mask_is_named(vistas_dir, tmp_path, capsys):
    mask = np.where(ids_of(3) > 1, 255, 0).astype(np.uint8)
    save_label(vistas_dir / "training/labels/e.png", mask, palette=False)
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    assert "got 255. Remedy: a label of only 0 and 255 is a mask" in error_line(capsys)


def test_shards_of_other_tools_are_not_touched(vistas_dir, tmp_path, capsys):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/training-00000-of-00005.tfrecord").write_bytes(b"theirs")
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    assert "must be empty or begun by this program" in capsys.readouterr().err
    assert [p.read_bytes() for p in (tmp_path / "r").iterdir()] == [b"theirs"]


def test_two_conversions_do_not_mix(vistas_dir, tmp_path, capsys):
    (tmp_path / "r/.parts").mkdir(parents=True)
    with (tmp_path / "r/.parts/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    assert "another conversion" in capsys.readouterr().err
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0


def truncated(path):
    path.write_bytes(path.read_bytes()[:-30])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def grey_4_bit(path):
    # Pillow would read id 1 of such a file as 17.
    header = bytes([0, 0, 0, 40, 0, 0, 0, 30, 4, 0, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(21 * 30)), b"IEND"):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(png)


BROKEN = {
    "truncated image": ("images/e.jpg", truncated, "valid JPEG"),
    "truncated label": ("labels/e.png", truncated, "valid JPEG"),
    "flipped bit in a label": ("labels/e.png", flipped, "valid JPEG"),
    "empty image": ("images/e.jpg", lambda p: p.write_bytes(b""), "first bytes"),
    "text as image": ("images/e.jpg", lambda p: p.write_text("<html>"), "first bytes"),
    "CMYK image": ("images/e.jpg", lambda p: save_image(p, 3, mode="CMYK"), "CMYK"),
    "RGB label": ("labels/e.png", lambda p: save_image(p, 3), "8-bit RGB"),
    "16-bit label": (
        "labels/e.png",
        lambda p: Image.fromarray(np.full((30, 40), 256, np.uint16)).save(p),
        "16-bit grey",
    ),
    "4-bit grey label": ("labels/e.png", grey_4_bit, "4-bit grey"),
    "JPEG label": ("labels/e.png", lambda p: save_image(p, 3, format="JPEG"), "must be a PNG"),
    "unknown ids": (
        "labels/e.png",
        lambda p: save_label(p, ids_of(3, count=6), palette=False),
        "class table (0-3); got 4, 5.",
    ),
    "other size": (
        "images/e.jpg",
        lambda p: save_image(p, 3, (40, 30)),
        "got image 40x30, label 30x40",
    ),
    "no label": ("labels/e.png", Path.unlink, "images/e.jpg: must have the label"),
    "no image": ("images/e.jpg", Path.unlink, "labels/e.png: must have the image"),
    "two images": ("images/e.png", lambda p: save_image(p, 3), "only file of its stem"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_file_ends_in_one_line_that_names_it(vistas_dir, tmp_path, capsys, case):
    name, spoil, expected = BROKEN[case]
    spoil(vistas_dir / "training" / name)
    capsys.readouterr()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1
    error = error_line(capsys)
    assert "vistas/training/" in error
    assert "/e." in error
    assert expected in error
    assert_nothing_half_written(tmp_path / "r")


def test_names_and_folders_are_checked_before_decoding(vistas_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "convert_shard", lambda *_: pytest.fail("work has begun"))
    (vistas_dir / "validation/labels/_b.png").unlink()
    assert convert_vistas(vistas_dir, tmp_path / "r") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "records_dir must be given"),
        (["--records_dir=r"], "got no source"),
        (["--records_dir=r", "--vistas_dir=nowhere"], "nowhere: no such folder"),
        (["--records_dir=r", "--vistas_dir=."], "must contain SPLIT/images"),
        (["--records_dir=r", "--vistas_dir=v", "--split=a"], "together with split"),
        (["--records_dir=r", "--image_dir=v", "--split=a"], "got no label_dir, classes"),
        (["--records_dir=r", "--vistas_dir=v", "--max_side=9", "--resize_to=9x9"], "not both"),
        (["--records_dir=r", "--vistas_dir=v", "--resize_to=512"], "HEIGHTxWIDTH"),
        (["--records_dir=r", "--vistas_dir=v", "--resize_to=0x9"], "positive"),
        (["--records_dir=r", "--vistas_dir=v", "more"], "flags, --name=value; got more"),
        (["--records_dir=r", "--vista_dir=v"], "vista_dir"),
        (["--records_dir=r", "--vistas_dir=v", "--workers=-1"], "workers"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert main(["", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert not (tmp_path / "r").exists()


def test_help_shows_the_usage(capsys):
    assert main(["", "--help"]) == 0
    assert "--vistas_dir=D --records_dir=R" in capsys.readouterr().out


def turned_jpeg(upright, orientation):
    """A JPEG whose stored pixels show `upright` only after applying its EXIF orientation."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    stored_image = Image.fromarray(upright).transpose(undo[orientation])
    stored_image.save(buffer, "JPEG", quality=98, subsampling=0, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_images_are_made_upright(vistas_dir, tmp_path, capsys, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = (200, 30, 30)
    upright[:16, 16:] = (30, 200, 30)
    save_label(vistas_dir / "validation/labels/_b.png", ids_of(5, (32, 48)))
    (vistas_dir / "validation/images/_b.jpg").write_bytes(turned_jpeg(upright, orientation))
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert "1 images made upright" in capsys.readouterr().out
    assert read_manifest(tmp_path / "r").split("validation").made_upright == ("_b",)
    features, ids = stored(tmp_path / "r", "validation")["_b"]
    data = features["image/encoded"].bytes_list.value[0]
    assert np.abs(np.asarray(Image.open(io.BytesIO(data)), int) - upright).max() < 12
    assert Image.open(io.BytesIO(data)).getexif().get(274) is None
    np.testing.assert_array_equal(ids, ids_of(5, (32, 48)))


def test_a_turned_image_whose_label_is_not_keeps_its_bytes(vistas_dir, tmp_path, capsys):
    data = turned_jpeg(np.zeros((48, 32, 3), np.uint8), 6)  # stored as 32x48, like the label
    save_label(vistas_dir / "validation/labels/_b.png", ids_of(5, (32, 48)))
    (vistas_dir / "validation/images/_b.jpg").write_bytes(data)
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    assert "1 images kept as stored" in capsys.readouterr().out
    assert read_manifest(tmp_path / "r").split("validation").kept_turned == ("_b",)
    features, _ = stored(tmp_path / "r", "validation")["_b"]
    assert features["image/encoded"].bytes_list.value[0] == data


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        (Resize(max_side=512), (3456, 4608), (384, 512)),
        (Resize(max_side=512), (1000, 10), (512, 5)),
        (Resize(max_side=512), (4000, 1), (512, 1)),
        (Resize(max_side=512), (300, 512), (300, 512)),
        (Resize(resize_to=(384, 512)), (30, 20), (384, 512)),
        (Resize(), (30, 20), (30, 20)),
    ],
)
def test_stored_sizes(resize, size, expected):
    assert resize.target(size) == expected


def test_max_side_shrinks_only_larger_samples(vistas_dir, tmp_path):
    assert convert_vistas(vistas_dir, tmp_path / "r", "--max_side=40") == 0
    assert read_manifest(tmp_path / "r").split("training").sizes == {(30, 40): 4, (40, 16): 1}
    records = stored(tmp_path / "r", "training")
    small, ids = records["-a"]
    assert Image.open(io.BytesIO(small["image/encoded"].bytes_list.value[0])).size == (16, 40)
    np.testing.assert_array_equal(ids, resize_label(ids_of(0, (50, 20)), (40, 16)))
    kept = records["e"][0]["image/encoded"].bytes_list.value[0]
    assert kept == (vistas_dir / "training/images/e.jpg").read_bytes()


def test_resize_to_gives_every_sample_one_size(vistas_dir, tmp_path):
    assert convert_vistas(vistas_dir, tmp_path / "r", "--resize_to=12x16") == 0
    split = read_manifest(tmp_path / "r").split("training")
    assert split.sizes == {(12, 16): 5}
    assert sum(split.pixels.values()) == 5 * 12 * 16
    assert split.options["resize_to"] == [12, 16]


def test_a_palette_of_few_colours_is_read_by_index(vistas_dir, tmp_path):
    path = vistas_dir / "training/labels/e.png"
    label = Image.fromarray(ids_of(3)).convert("P")
    label.putpalette(bytes(12))
    label.paste(Image.fromarray(ids_of(3)))
    label.save(path, bits=2)
    assert path.read_bytes()[24] == 2  # bits per pixel
    assert convert_vistas(vistas_dir, tmp_path / "r") == 0
    np.testing.assert_array_equal(stored(tmp_path / "r", "training")["e"][1], ids_of(3))


def test_shards_are_cut_by_bytes():
    assert [len(g) for g in partition([1] * 40)] == [2, 3, 2, 3] * 4
    assert [len(g) for g in partition([64 << 20] * 100)] == [4] * 25  # 256 MB each
    assert partition([1 << 30, 1, 1 << 30]) == [[0], [1], [2]]
    assert partition([5, 0]) == [[0], [1]]
    assert partition([0]) == [[0]]
    random = np.random.default_rng(0).integers(1 << 10, 40 << 20, 999).tolist()
    groups = partition(random)
    assert [i for group in groups for i in group] == list(range(999))
    assert max(sum(random[i] for i in group) for group in groups) < 300 << 20


@needs_shared
def test_the_size_of_resized_shards_is_guessed_from_headers(tmp_path):
    source = find_vistas(DATA / "mapillary_sample")
    lines = []
    manifest = build_records(source, tmp_path, Resize(max_side=512), 2, lines.append)
    guess, unit = re.match(r"to write: about (\S+) (.B) in 1\d shards", lines[0]).groups()
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    assert 0.7 < float(guess) * {"MB": 1e6, "kB": 1e3}[unit] / size < 1.5


@needs_shared
def test_the_real_sample(tmp_path):
    source = DATA / "mapillary_sample"
    assert main(["", f"--vistas_dir={source}", f"--records_dir={tmp_path}", "--workers=1"]) == 0
    manifest = read_manifest(tmp_path)
    assert {name: s.samples for name, s in manifest.splits.items()} == {
        "training": 10,
        "validation": 5,
    }
    lane_pixels = 0
    for split in manifest.splits:
        for image, label, name in read_samples(tmp_path, split):
            path = source / split / "labels" / f"{name.numpy().decode()}.png"
            ids = np.asarray(Image.open(path))
            np.testing.assert_array_equal(label, np.where(ids == 65, VOID, ids))
            assert image.shape[:2] == ids.shape
            lane_pixels += np.count_nonzero(ids == 24)
    lane = [s.pixels["marking--general"] for s in manifest.splits.values()]
    assert sum(lane) == lane_pixels > 0
    size = sum(p.stat().st_size for p in source.glob("*/*/*"))
    assert sum(p.stat().st_size for p in tmp_path.glob("*.tfrecord")) < 1.2 * size


@needs_shared
def test_camvid_as_plain_folders(tmp_path):
    source, classes = DATA / "camvid/val", tmp_path / "camvid.json"
    names = [f"class {i}" for i in range(11)] + ["unlabeled"]
    classes.write_text(json.dumps(class_table(names)))
    records = tmp_path / "r"
    arguments = [*folder_options(source, "val", classes), f"--records_dir={records}"]
    assert main(["", *arguments, "--workers=1"]) == 0
    assert read_manifest(records).split("val").samples == 101
    for _, label, name in read_samples(records, "val").take(20):
        ids = np.asarray(Image.open(source / "labels" / f"{name.numpy().decode()}.png"))
        np.testing.assert_array_equal(label, np.where(ids == 11, VOID, ids))
