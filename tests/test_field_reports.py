"""Situations from practice: each has the right result, or one clear message."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import LABELS, ROOT, TINY
from PIL import Image

import train_main
from data_prep import build_records
from data_prep.decoding import read_label
from data_prep.sources import SourceSplit
from mapseg.config import InferConfig, TrainConfig
from mapseg.data.manifest import read_manifest
from mapseg.data.pairing import find_pairs
from mapseg.inference.frames import find_frames
from mapseg.inference.reading import read_image
from mapseg.labels import parse_class_table
from mapseg.training.prepare import begin_run


def run(*arguments, **options):
    command = [sys.executable, "-m", "data_prep.build_records", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def vistas(records_dir):
    return records_dir.parent / "vistas"


def test_a_split_without_a_trained_pixel_is_refused(records_dir, tmp_path):
    manifest = read_manifest(records_dir)
    split = replace(manifest.splits["training"], pixels={"void--unlabeled": 7})
    void = replace(manifest, splits={**manifest.splits, "training": split})
    with pytest.raises(ValueError, match="must have pixels of a class that is trained"):
        begin_run(tmp_path / "run", void, TINY)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_tiff_with_transparency_is_refused(tmp_path, mode):
    Image.new(mode, (8, 6), 0).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: .* without transparency; got"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(tmp_path / "b.tif")
    assert (read_image(tmp_path / "b.tif") == 90).all()


@pytest.mark.parametrize("options", [{"max_scale": float("inf")}, {"learning_rate": float("nan")}])
def test_numbers_that_are_not_finite_are_refused(options):
    with pytest.raises(ValueError, match="must be positive; got"):
        TrainConfig(**options)


def test_a_seed_that_generators_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="seed must be 0 to 2147483647; got"):
        TrainConfig(seed=10**20)


def test_a_class_name_with_a_line_break_is_refused():
    table = {"labels": [*LABELS, {"name": "a\nb", "color": [1, 2, 3]}]}
    with pytest.raises(ValueError, match="name must be printable text"):
        parse_class_table(table, "t.json")


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf--steps=3\n", b"# \xfcber\n", "--steps=3".encode("utf-16")]
)
def test_a_flag_file_of_another_encoding_is_named(tmp_path, capsys, text):
    (tmp_path / "f.flags").write_bytes(text)
    assert train_main.main(["train_main.py", f"--flagfile={tmp_path / 'f.flags'}"]) == 1
    error = capsys.readouterr().err
    assert "f.flags: a flag file must" in error
    assert "bug" not in error


@pytest.mark.parametrize(
    ("path", "message"), [("", "plot_path must be given"), ("a.jpg", "a chart must be a .png file")]
)
def test_a_chart_that_is_not_a_png_is_refused(run_dir, tmp_path, capsys, path, message):
    path = path and tmp_path / path
    arguments = ["--mode=plot", f"--runs={run_dir}", f"--plot_path={path}"]
    assert train_main.main(["train_main.py", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_records_among_the_images_are_refused(records_dir, capsys):
    inside = vistas(records_dir) / "training" / "images" / "records"
    arguments = [f"--vistas_dir={vistas(records_dir)}", f"--records_dir={inside}"]
    assert build_records.main(["build_records", *arguments]) == 1
    assert "must lie outside the folders of images" in capsys.readouterr().err
    assert not inside.exists()


def test_a_tilde_in_a_flag_is_the_home_folder(records_dir, tmp_path):
    done = run(
        f"--vistas_dir={vistas(records_dir)}",
        "--records_dir=~/records",
        "--workers=1",
        env={"HOME": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "records" / "manifest.json").is_file()


def test_a_conversion_finishes_with_closed_or_full_outputs(records_dir, tmp_path):
    """As in `build_records | true` and `build_records 2>&-`."""
    command = [sys.executable, "-m", "data_prep.build_records", "--workers=1"]
    source = f"--vistas_dir={vistas(records_dir)}"
    for name, redirected in (("a", "| true"), ("b", "2>&- <&-"), ("c", "> /dev/full")):
        target = f"--records_dir={tmp_path / name}"
        shell = " ".join(f"'{word}'" for word in [*command, source, target])
        script = f"set -o pipefail; {shell} {redirected}"
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, (redirected, done.stderr)
        assert (tmp_path / name / "manifest.json").is_file()


def test_an_empty_label_is_reported_as_empty(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png: .*got an empty file.*Remedy"):
        read_label(tmp_path / "a.png", tuple(parse_class_table({"labels": LABELS}, "t")))


def test_a_pipe_among_the_images_is_reported(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    os.mkfifo(tmp_path / "images" / "b.png")
    _, left_out = find_pairs(tmp_path / "images", tmp_path / "labels")
    assert "got a pipe, socket or device" in left_out["b"]


def test_a_split_name_too_long_for_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at most 200"):
        SourceSplit("a" * 250, tmp_path, tmp_path, ())


def test_a_folder_in_a_list_of_frames_is_reported(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "list.txt").write_text("frames\n")
    with pytest.raises(FileNotFoundError, match="a folder or device, not a file"):
        find_frames(InferConfig(frames=str(tmp_path / "list.txt"), out_dir="P"))
