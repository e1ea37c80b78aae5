"""docs/notebook.ipynb: executed as a reader does, on fewer scenes and with a tiny encoder."""

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from PIL import Image

PATH = ROOT / "docs/notebook.ipynb"
SMALL = {"TRAINING_SCENES": 4, "STEPS": 4}
TINY_ENCODER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from mapseg.model import deeplab
from train_tiny import build_tiny_encoder
deeplab.build_encoder = build_tiny_encoder
"""


def read():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder in which the notebook was executed, and its cells by id, with outputs."""
    folder, notebook = tmp_path_factory.mktemp("notebook"), read()
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in SMALL.items():
        pattern = rf"^{name} = \d+$"
        assert len(re.findall(pattern, parameters.source, re.MULTILINE)) == 1
        parameters.source = re.sub(pattern, f"{name} = {value}", parameters.source, flags=re.M)
    notebook.cells.insert(0, new_code_cell(TINY_ENCODER))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return folder / "notebook_out/4_scenes", {cell.id: cell for cell in notebook.cells}


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def pictures(cell):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def test_it_is_committed_without_outputs_and_without_facts_about_a_machine():
    notebook = read()
    assert len(notebook.cells) < 25
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell.metadata) <= {"tags"}
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_another_number_of_scenes_makes_another_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources, commands = {cell.id: cell.source for cell in read().cells}, []

    def make(argv):
        commands.append(argv)
        Path(argv[1].removeprefix("--out_dir=")).mkdir(parents=True)

    for count in (40, 50, 40):
        names = {"Path": Path, "make_sample": SimpleNamespace(main=make)}
        exec(sources["parameters"].replace("SCENES = 40", f"SCENES = {count}"), names)
        exec(sources["raw"], names)
    assert [argv[2] for argv in commands] == ["--training=40", "--training=50"]


def test_its_steps_leave_their_files(executed):
    out_dir, _ = executed
    for name in (
        "sample/config_v1.2.json",
        "records/manifest.json",
        "run/history.csv",
        "export/saved_model.pb",
        "run/report/index.html",
    ):
        assert (out_dir / name).is_file(), name


def test_it_prints_the_scores_of_the_evaluation(executed):
    out_dir, cells = executed
    scores = json.loads((out_dir / "run/evaluation/validation.json").read_text())
    expected = f"mean IoU {scores['mean_iou']:.1%}, pixel accuracy {scores['pixel_accuracy']:.1%}"
    assert expected in printed(cells["evaluate"])
    assert 0 < scores["mean_iou"] < 1


def test_it_predicts_frames_as_its_export_does(executed):
    _, cells = executed
    assert len(re.findall(r"\.png: \(188, 621\), mean conf", printed(cells["predict"]))) == 3
    (share,) = re.findall(r"equal to predict: (\S+)% of the pixels", printed(cells["export"]))
    assert float(share) > 99.9


def test_its_pictures_show_something(executed):
    _, cells = executed
    for name in ("raw-pictures", "convert", "loss", "classes", "overlays"):
        (picture,) = pictures(cells[name])
        assert min(picture.shape[:2]) > 150 and picture.std() > 10, name
