"""What an export cannot be is refused by name, before any work."""

import sys
from pathlib import Path

import pytest

from mapseg.config import PredictConfig
from mapseg.estimator import Estimator
from mapseg.inference.export.formats import FORMATS, check_export_dir, choose_formats


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (None, {}, "format must be .*; got none"),
        ("onnx", {}, "formats must be a list of names; got the text 'onnx'"),
        ([], {}, "format must be a comma-separated list of saved_model, onnx.*; got none"),
        (["litert_int8"], {}, "format litert_int8: scale must be 1, .*; got auto. Remedy: .*=1"),
        (["litert_int8"], {"scale": "1", "scales": "2"}, "scale must be 1, .*; got 1, with scales"),
        (["litert_int8"], {"scale": "1"}, "records_dir must be given, .*; got none. Remedy: --rec"),
        (["litert"], {"flip_average": True}, "format litert: flip_average must be off"),
        (["onnx", "caffe"], {}, "format must be .*; got onnx,caffe"),
        (["onnx"], {"scales": "0.5,1"}, "format onnx: scales must be a single number; got 0.5,1"),
        (["onnx"], {"flip_average": True}, "format onnx: flip_average must be off; .*Remedy"),
    ],
)
def test_refusals(names, options, message):
    with pytest.raises(ValueError, match=message):
        choose_formats(names, PredictConfig(**options))


def test_the_saved_model_supports_all_options():
    config = PredictConfig(scales="0.5,1", flip_average=True)
    assert [form.name for form in choose_formats(["saved_model"], config)] == ["saved_model"]


def test_a_missing_package_is_refused_before_any_work(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    message = r"format onnx needs .*; missing: tf2onnx. Remedy: pip install 'mapseg\[export\]'"
    with pytest.raises(ValueError, match=message):
        Estimator(tiny_run).export(tmp_path / "export", formats=["saved_model", "onnx"])
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["labels.json", "saved_model.pb", "variables"],  # of an earlier version
        ["labels.json", "export.json", "model.onnx"],
        [],
    ],
)
def test_an_earlier_export_may_be_replaced(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    check_export_dir(tmp_path)


@pytest.mark.parametrize(
    "names",
    [["saved_model.pb"], ["labels.json"], ["labels.json", "export.json", "thesis.txt"]],
)
def test_other_folders_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="export_dir must be new, empty or an earlier export"):
        check_export_dir(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_file_and_the_current_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: export_dir must be a folder; got a file. Remedy"):
        check_export_dir(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"must not be the current folder, .* Remedy"):
        check_export_dir(Path())


def test_no_two_formats_write_the_same_file():
    files = [name for form in FORMATS for name in form.files]
    assert len(files) == len(set(files))
