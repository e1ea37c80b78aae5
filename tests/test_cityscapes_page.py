"""The commands of docs/cityscapes.md, on a small folder in the layout of Cityscapes."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from cityscapes_by_hand import CITIES, write_cityscapes
from conftest import ROOT, TINY
from PIL import Image
from train_tiny import build_tiny_encoder

import infer_main
import train_main
from data_prep import build_records, verify_records
from mapseg.data.manifest import read_manifest
from mapseg.model import deeplab

PAGE = (ROOT / "docs/cityscapes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(
    r"<!-- run by tests/test_cityscapes_page\.py -->\n```\n(.*?)```", PAGE, re.DOTALL
)
PROGRAMS = {
    "-m data_prep.build_records": build_records.main,
    "-m data_prep.verify_records": verify_records.main,
    "infer_main.py": infer_main.main,
}
SMALL = {**TINY, "crop_height": 65, "crop_width": 65, "steps": 40, "eval_panels": 0}
SMALL |= {"learning_rate": 0.1, "batch_norm_momentum": 0.9, "compile_cache_dir": ""}
# NumPy 2.4 removed this function; the page names an environment with an older one.
OFFICIAL = (
    "import numpy; numpy.in1d = numpy.isin; "
    "from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import main; main()"
)


def run_command(command):
    """Runs a command of the page in this process, which has imported TensorFlow already."""
    words = shlex.split(command)
    if "csEvalPixelLevelSemanticLabeling" in command:
        *variables, program = words
        assert program == "cityscapes_env/bin/csEvalPixelLevelSemanticLabeling"
        env = {**os.environ, **dict(variable.split("=") for variable in variables)}
        subprocess.run([sys.executable, "-c", OFFICIAL], env=env, check=True, capture_output=True)
        return
    assert words[0] == "python"
    if words[1] == "train_main.py":
        options = [f"--{name}={value}" for name, value in SMALL.items()]
        assert train_main.main([*words[1:], *options]) == 0
    elif words[1:3] == ["-m", "zipfile"]:
        zipfile.main(words[3:])
    else:
        (name,) = (name for name in PROGRAMS if command.startswith(f"python {name} "))
        assert PROGRAMS[name]([name, *words[1 + len(name.split()) :]]) == 0


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which all commands of the page were run, and the output of each."""
    pytest.importorskip("cityscapesscripts", reason="cityscapesscripts is not installed")
    root = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes(root / "download")
    for name in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(root / f"{name}_trainvaltest.zip", "w") as archive:
            archive.writestr("license.txt", "both archives have this file")
            for path in sorted((root / "download" / name).rglob("*.*")):
                archive.write(path, path.relative_to(root / "download"))
    (root / "experiments").symlink_to(ROOT / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deeplab, "build_encoder", build_tiny_encoder)
        patch.chdir(root)
        outputs = {}
        for command in "".join(BLOCKS).splitlines():
            with contextlib.redirect_stdout(io.StringIO()) as output:
                run_command(command)
            outputs[command] = output.getvalue()
        return root, outputs


@pytest.fixture(scope="module")
def folder(ran):
    """The folder in which all commands of the page were run, with its downloads."""
    return ran[0]


def test_the_records_hold_the_fine_labels_of_train_and_val(folder):
    manifest = read_manifest(folder / "records/cityscapes")
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "training": 4,
        "validation": 4,
    }
    assert manifest.skipped == {"test": "its public labels are dummies"}


def test_our_scores_are_those_of_the_official_program(folder):
    results = folder / "CITYSCAPES/evaluationResults/resultPixelLevelSemanticLabeling.json"
    official = json.loads(results.read_text())
    own = json.loads((folder / "runs/cityscapes/evaluation/validation.json").read_text())
    confusion = np.array(own["confusion"])
    assert (confusion.sum(0) > 0).sum() >= 4  # classes are predicted, so the scores mean something
    assert own["mean_iou"] == pytest.approx(official["averageScoreClasses"], abs=1e-12)
    assert own["occurring_mean_iou"] == own["mean_iou"]
    scored = {name: iou for name, iou in official["classScores"].items() if not np.isnan(iou)}
    assert own["iou"] == pytest.approx(scored, abs=1e-12)
    assert len(scored) == 19


def test_inference_reports_label_ids(ran):
    # The page names this line as the sign that the ids are those of the server.
    outputs = [text for command, text in ran[1].items() if "infer_main.py" in command]
    assert len(outputs) == 2
    for text in outputs:
        assert "label ids in ids/*.png: 7 road, 8 sidewalk, 11 building, ..." in text.splitlines()
    assert "`7 road, 8 sidewalk, 11 building, ...`" in PAGE


def test_the_submission_has_an_image_of_label_ids_for_each_test_image(folder):
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        assert sorted(names) == [
            f"ids/{city}/{city}_{index:06}_000019_leftImg8bit.png"
            for city in CITIES["test"]
            for index in range(2)
        ]
        for name in names:
            with archive.open(name) as file, Image.open(file) as picture:
                ids = np.asarray(picture)
            assert ids.shape == (80, 180) and ids.dtype == np.uint8
            assert {*np.unique(ids).tolist()} <= {7, 8, 11, 12, 13, 17, *range(19, 34)} - {29, 30}
