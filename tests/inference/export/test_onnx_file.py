"""The ONNX file gives the ids of inference, without mapseg and TensorFlow."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from batches_by_hand import make_batches
from conftest import page_examples, tiny_scene, use_tiny_encoder
from PIL import Image

from mapseg import __version__
from mapseg.config import ModelConfig, PredictConfig
from mapseg.estimator import Estimator
from mapseg.inference.export.onnx_file import open_onnx, write_onnx
from mapseg.inference.export.whole_job import make_whole_job
from mapseg.inference.predictor import Predictor
from mapseg.model.deeplab import build_model
from mapseg.model.network import convertible_network, frozen_network

CONFIG = PredictConfig(scale="0.8")

_RUN = """
import sys
import numpy as np
for name in ("mapseg", "tensorflow", "keras"):
    sys.modules[name] = None
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
batches = np.load(sys.argv[2])
ids = {name: session.run(["ids"], {"images": batches[name]})[0] for name in batches}
np.savez(sys.argv[3], **ids)
"""


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """The folder of an export, and the ids of inference on batches of scenes."""
    folder = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoder(patch)
        estimator = Estimator(tiny_run, progress=lambda _: None)
        estimator.export(folder / "export", CONFIG, formats=["onnx"])
        batches, expected = make_batches(estimator, CONFIG)
    np.savez(folder / "batches.npz", **batches)
    return folder, expected


@pytest.mark.addons
def test_the_file_gives_the_ids_of_inference_for_all_batches_and_sizes(exported):
    folder, expected = exported
    paths = [str(folder / name) for name in ("export/model.onnx", "batches.npz", "ids.npz")]
    subprocess.run([sys.executable, "-c", _RUN, *paths], check=True, cwd=folder)
    served = np.load(folder / "ids.npz")
    for name, ids in expected.items():
        assert (served[name].dtype, served[name].shape) == (np.uint8, ids.shape)
    equal = np.concatenate([(served[name] == ids).ravel() for name, ids in expected.items()])
    assert equal.mean() >= 0.999
    assert len(np.unique(np.concatenate([ids.ravel() for ids in expected.values()]))) > 1


def test_the_file_describes_itself(exported, tiny_run):
    folder, _ = exported
    model = onnx.load(folder / "export" / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    classes = Estimator(tiny_run).run.label_set.classes
    assert json.loads(facts.pop("classes")) == [c.to_json() for c in classes]
    assert facts == {"scale": "0.8", "mapseg": __version__, "step": "4"}
    ends = [
        (end.name, [side.dim_param or side.dim_value for side in end.type.tensor_type.shape.dim])
        for end in (*model.graph.input, *model.graph.output)
    ]
    sides = ["batch", "height", "width"]
    assert ends == [("images", [*sides, 3]), ("ids", sides)]


def test_export_json_holds_what_the_check_measured(exported):
    folder, _ = exported
    facts = json.loads((folder / "export" / "export.json").read_text())
    assert {p.name for p in (folder / "export").iterdir()} == {
        *("export.json", "labels.json", "model.onnx")
    }
    assert facts["formats"].keys() == {"onnx"}
    assert facts["formats"]["onnx"]["equal_ids"] >= 0.999
    assert (facts["step"], facts["scale"], facts["check"]["frames"]) == (4, "0.8", 4)
    assert facts["check"]["classes_shown"] >= 2
    assert PredictConfig(**facts["options"]) == CONFIG


def test_the_example_of_the_page_runs(exported, tmp_path, monkeypatch):
    (example,) = page_examples("deploy.md", "ONNX")
    assert len(example.strip().splitlines()) <= 10
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/export").symlink_to(exported[0] / "export")
    scene, _ = tiny_scene(np.random.default_rng(6))
    Image.fromarray(scene).save(tmp_path / "frame.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/deploy.md", "exec"), {})
    colors = np.asarray(Image.open("ids.png").convert("RGB"))
    assert colors.shape == scene.shape


def test_a_network_with_its_own_context_module_is_converted(tmp_path):
    """DDRNet averages over windows and up-samples by matrix products, which MobileNetV2 lacks."""
    config = ModelConfig(
        encoder="ddrnet23_slim", encoder_weights="none", output_stride=8, decoder_channels=8
    )
    model = build_model(config, 5)
    images = np.random.default_rng(7).integers(0, 256, [2, 50, 71, 3], np.uint8)
    logits = frozen_network(model).logits(images).numpy()
    model.get_layer("logits-semantic").bias.assign(-logits.mean((0, 1, 2)))  # several classes win
    options = PredictConfig(scale="1")
    segment = make_whole_job(convertible_network(model), options, 100)
    source = SimpleNamespace(segment=segment, facts={"classes": []})
    write_onnx(source, tmp_path / "model.onnx")
    ids = open_onnx(tmp_path / "model.onnx")(images)
    predictor = Predictor(frozen_network(model, portable=True), options, 100)
    expected = np.stack([predictor.segment(image).ids for image in images])
    assert (ids == expected).mean() >= 0.999
    assert len(np.unique(expected)) > 1
