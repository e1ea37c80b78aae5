"""The LiteRT files give the ids of inference, with LiteRT alone; integers nearly."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from batches_by_hand import make_batches
from conftest import page_examples, tiny_scene, use_tiny_encoder
from PIL import Image

from mapseg import __version__
from mapseg.config import PredictConfig
from mapseg.data.manifest import read_manifest
from mapseg.data.whole_samples import even_places
from mapseg.estimator import Estimator
from mapseg.evaluation import exported as exported_scores
from mapseg.evaluation.counting import count_image
from mapseg.inference.export.calibration import read_calibration_images
from mapseg.inference.export.source import Source
from mapseg.runs.checkpoints import find_checkpoint

FILES = {
    "litert": "model.tflite",
    "litert_dynamic_int8": "model_dynamic_int8.tflite",
    "litert_int8": "model_int8.tflite",
}
CONFIG = PredictConfig(scale="1")

_RUN = """
import sys
import numpy as np
for name in ("mapseg", "tensorflow", "keras"):
    sys.modules[name] = None
from ai_edge_litert.interpreter import Interpreter
batches = np.load(sys.argv[1])
for path in sys.argv[2:]:
    segment = Interpreter(path).get_signature_runner()
    np.savez(path + ".npz", **{name: segment(images=batches[name])["ids"] for name in batches})
"""


@pytest.fixture(scope="module")
def exported(tiny_run, records_dir, tmp_path_factory):
    """The folder of an export, and the ids of inference on batches of scenes."""
    folder = tmp_path_factory.mktemp("litert")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoder(patch)
        estimator = Estimator(tiny_run, progress=lambda _: None)
        estimator.export(folder / "export", CONFIG, formats=[*FILES], records_dir=records_dir)
        batches, expected = make_batches(estimator, CONFIG)
    np.savez(folder / "batches.npz", **batches)
    paths = [str(folder / "export" / name) for name in FILES.values()]
    command = [sys.executable, "-c", _RUN, str(folder / "batches.npz"), *paths]
    subprocess.run(command, check=True, cwd=folder)
    return folder / "export", expected


@pytest.mark.addons
@pytest.mark.parametrize(
    ("name", "least"), [("litert", 0.999), ("litert_dynamic_int8", 0.95), ("litert_int8", 0.9)]
)
def test_the_files_give_the_ids_of_inference_for_all_batches_and_sizes(exported, name, least):
    folder, expected = exported
    ids = np.load(folder / f"{FILES[name]}.npz")
    for batch, wanted in expected.items():
        assert (ids[batch].dtype, ids[batch].shape) == (np.uint8, wanted.shape)
    equal = np.concatenate([(ids[batch] == wanted).ravel() for batch, wanted in expected.items()])
    assert equal.mean() >= least
    assert len(np.unique(np.concatenate([wanted.ravel() for wanted in expected.values()]))) > 1


@pytest.mark.parametrize("name", FILES)
def test_the_files_describe_themselves(exported, tiny_run, name):
    model = schema.Model.GetRootAs((exported[0] / FILES[name]).read_bytes())
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    (number,) = (entry.Buffer() for entry in entries if entry.Name() == b"mapseg")
    facts = json.loads(model.Buffers(number).DataAsNumpy().tobytes())
    classes = Estimator(tiny_run).run.label_set.classes
    assert facts.pop("classes") == [c.to_json() for c in classes]
    assert facts == {"scale": "1", "mapseg": __version__, "step": 4}


def test_integers_take_pixels_as_they_are_and_hold_no_float(exported):
    interpreter = Interpreter(str(exported[0] / FILES["litert_int8"]))
    (images,), (ids,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (images["dtype"], images["quantization"]) == (np.uint8, (1.0, 0))
    assert list(images["shape_signature"]) == [-1, -1, -1, 3]
    assert ids["dtype"] == np.uint8
    types = {tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    assert np.float32 not in types and np.int8 in types


def test_export_json_holds_the_scores_of_integers(exported):
    formats = json.loads((exported[0] / "export.json").read_text())["formats"]
    assert formats.keys() == FILES.keys()
    assert "scores" not in formats["litert"]
    for name in ("litert_dynamic_int8", "litert_int8"):
        scores = formats[name]["scores"]
        assert scores["images"] == 3
        assert 0.8 < scores["equal_ids"] <= 1
        assert 0 < scores["mean_iou"] < 1 and 0 < scores["mean_iou_of_source"] < 1


def test_even_places_spread_over_all_samples():
    assert even_places(4, 9) == [0, 2, 4, 6]
    assert even_places(4, 3) == [0, 1, 2]
    assert even_places(100, 250)[::33] == [0, 82, 165, 247]


def test_every_sample_of_a_small_split_is_scored_once(tiny_run, records_dir, monkeypatch):
    counted = []

    def note(key, label, ids, label_set):
        counted.append(key)
        return count_image(key, label, ids, label_set)

    monkeypatch.setattr(exported_scores, "count_image", note)
    source = Source(Estimator(tiny_run).run, find_checkpoint(tiny_run), CONFIG)
    shown = lambda images: np.zeros(images.shape[:3], np.uint8)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoder(patch)
        exported_scores.score_exports(
            source, {"litert": shown}, read_manifest(records_dir), lambda _: None
        )
    assert len(counted) == 6 and len(set(counted)) == 3  # of the source and of the format


def test_calibration_images_are_the_same_in_every_call(tiny_run, records_dir):
    source = Source(Estimator(tiny_run).run, find_checkpoint(tiny_run), CONFIG)
    manifest = read_manifest(records_dir)
    images = read_calibration_images(source, manifest)
    assert [image.shape for image in images] == [(60, 80, 3)] * 6
    for image, again in zip(images, read_calibration_images(source, manifest), strict=True):
        np.testing.assert_array_equal(image, again)
    assert len({image.tobytes() for image in images}) == 6


def test_the_example_of_the_page_runs(exported, tmp_path, monkeypatch):
    (example,) = page_examples("deploy.md", "LiteRT")
    assert len(example.strip().splitlines()) <= 10
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/export").symlink_to(exported[0])
    scene, _ = tiny_scene(np.random.default_rng(6))
    Image.fromarray(scene).save(tmp_path / "frame.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/deploy.md", "exec"), {})
    colors = np.asarray(Image.open("ids.png").convert("RGB"))
    assert colors.shape == scene.shape
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 1
