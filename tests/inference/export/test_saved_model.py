"""A SavedModel gives the ids of inference without mapseg, also in the way of docs/deploy.md."""

import base64
import io
import json
import re
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, page_examples, tiny_scene, use_tiny_encoder
from PIL import Image

import mapseg
from mapseg.config import PredictConfig
from mapseg.estimator import Estimator
from mapseg.inference.reading import read_image

PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
CONFIG = PredictConfig(tile_px=65)
SIZES = [(48, 32), (40, 70), (1, 1), (90, 33)]  # of the frames, upright

# What users of TensorFlow do; mapseg cannot be imported.
_SERVE = """
import sys
import numpy as np
sys.modules["mapseg"] = None
import tensorflow as tf
export_dir, out_path, *paths = sys.argv[1:]
saved = tf.saved_model.load(export_dir)
files = tf.stack([tf.io.read_file(path) for path in paths])
images = np.load(out_path)["images"]
found = {
    "serving_default": saved.signatures["serving_default"](images=tf.constant(images)),
    "encoded": saved.signatures["encoded"](image_bytes=files),
    "png": saved.signatures["png"](image_bytes=files),
    "about": saved.signatures["about"](query=tf.constant(["", "x"])),
    "method": {
        "ids": saved.segment(images)["ids"],
        "sizes": saved.segment_encoded(files)["sizes"],
        "one_ids": saved.segment_encoded(files[0])["ids"],
        "png_bytes": saved.segment_to_png(files)["png_bytes"],
        "json": saved.about(),
    },
}
arrays = {}
for name, outputs in found.items():
    arrays |= {f"{name}/{key}": tensor.numpy() for key, tensor in outputs.items()}
np.savez(out_path, **arrays)
"""


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Photographs of several sizes, one of them rotated by its EXIF data."""
    folder, rng, exif = tmp_path_factory.mktemp("frames"), np.random.default_rng(5), Image.Exif()
    exif[0x0112] = 6
    paths = [folder / name for name in ("frame.jpg", "b.png", "c.png", "d.jpg")]
    for path, (height, width) in zip(paths, SIZES, strict=True):
        image = Image.fromarray(tiny_scene(rng, 60, 80)[0]).resize((width, height))
        if path == paths[0]:
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        else:
            image.save(path)
    return paths


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory, frames):
    """An export, and its ids of the frames according to the estimator."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoder(patch)
        estimator = Estimator(tiny_run)
        expected = [result.ids for result in estimator.predict(map(read_image, frames), CONFIG)]
        folder = estimator.export(tmp_path_factory.mktemp("export") / "saved", CONFIG)
    assert [ids.shape for ids in expected] == SIZES
    return folder, expected


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(str(exported[0])).signatures


def read_png(data):
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode) == ("PNG", "L")
    return np.asarray(picture)


@pytest.mark.addons
def test_frames_of_mixed_sizes_get_the_ids_of_inference_without_mapseg(exported, frames, tmp_path):
    folder, expected = exported
    images = np.stack([read_image(frames[1]), read_image(frames[1])[::-1]])
    np.savez(tmp_path / "out.npz", images=images)
    arguments = [str(path) for path in (folder, tmp_path / "out.npz", *frames)]
    subprocess.run([sys.executable, "-c", _SERVE, *arguments], check=True, cwd=tmp_path)
    served = dict(np.load(tmp_path / "out.npz", allow_pickle=True))

    assert served["encoded/sizes"].tolist() == [[*size] for size in SIZES]
    assert served["encoded/ids"].shape == (4, 90, 70)
    for i, ids in enumerate(expected):
        padded = np.full((90, 70), 255, np.uint8)
        padded[: ids.shape[0], : ids.shape[1]] = ids
        np.testing.assert_array_equal(served["encoded/ids"][i], padded)
        for name in ("encoded", "png"):
            np.testing.assert_array_equal(read_png(served[f"{name}/png_bytes"][i]), ids)
    np.testing.assert_array_equal(served["serving_default/ids"][0], expected[1])
    for i, ids in enumerate(served["serving_default/ids"]):
        np.testing.assert_array_equal(read_png(served["serving_default/png_bytes"][i]), ids)

    per_image = {"png_bytes", "confidence", "scale"}
    outputs = {
        "serving_default": {"ids", *per_image},
        "encoded": {"ids", "sizes", *per_image},
        "png": {"sizes", *per_image},
        "about": {"json"},
    }
    for name, keys in outputs.items():
        assert {key.split("/")[1] for key in served if key.startswith(f"{name}/")} == keys
    np.testing.assert_array_equal(served["method/one_ids"], expected[0])
    for key in ("sizes", "confidence", "scale"):
        np.testing.assert_array_equal(served[f"encoded/{key}"], served[f"png/{key}"])
    for name, key in (
        ("serving_default", "ids"),
        ("encoded", "sizes"),
        ("png", "png_bytes"),
    ):
        np.testing.assert_array_equal(served[f"method/{key}"], served[f"{name}/{key}"])
    assert served["about/json"].tolist() == [served["method/json"]] * 2


def test_the_export_states_its_classes_and_options(signatures, tiny_run):
    facts = json.loads(signatures["about"](query=tf.constant([""]))["json"][0].numpy())
    run = Estimator(tiny_run).run
    assert facts["classes"] == [c.to_json() for c in run.label_set.classes]
    assert facts["classes"][2]["color"] == [70, 130, 180]
    assert (facts["mapseg"], facts["void_id"]) == (mapseg.__version__, 255)
    options = {"scale": "auto", "scales": "1", "flip_average": False, "tile_px": 65}
    assert facts["prediction"] == {**options, "long_side_px": run.long_side_px}


@pytest.mark.addons
def test_a_bad_file_is_named_by_its_place_in_the_request(signatures, frames):
    good = frames[1].read_bytes()
    for bad, problem in (
        (b"", "a file must be a JPEG or PNG"),
        (b"a text", "a file must be a JPEG or PNG"),
        (good[:-20], "a JPEG or PNG must be complete"),
        (good[:60] + bytes(4) + good[64:], ""),  # reported by TensorFlow
    ):
        for name in ("encoded", "png"):
            message = rf"\[image_bytes\[1\]: {problem}" if problem else "Invalid PNG data"
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                signatures[name](image_bytes=tf.constant([good, bad]))
    assert signatures["png"](image_bytes=tf.constant([good]))["sizes"].numpy().tolist() == [
        [40, 70]
    ]


@pytest.mark.addons
def test_empty_requests_are_refused(signatures):
    for name in ("encoded", "png"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="must hold at least one file"):
            signatures[name](image_bytes=tf.constant([], tf.string))
    for shape in ((0, 5, 6, 3), (2, 0, 6, 3), (2, 5, 0, 3)):
        got = re.escape(f"at least 1; got [{' '.join(map(str, shape))}]")
        with pytest.raises(tf.errors.InvalidArgumentError, match=got):
            signatures["serving_default"](images=tf.zeros(shape, tf.uint8))


def predict(signatures, body):
    """Answers a REST request by the rules of TensorFlow Serving's row format."""
    request = json.loads(body)
    signature = signatures[request.get("signature_name", "serving_default")]
    ((name, spec),) = signature.structured_input_signature[1].items()
    values = [
        base64.b64decode(v["b64"]) if isinstance(v, dict) else v for v in request["instances"]
    ]
    outputs = signature(**{name: tf.constant(values, spec.dtype)})

    def cell(key, value):
        if key.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode()}
        return value.decode() if isinstance(value, bytes) else value

    columns = {key: tensor.numpy().tolist() for key, tensor in outputs.items()}
    assert {len(column) for column in columns.values()} == {len(values)}
    rows = [{key: cell(key, c[i]) for key, c in columns.items()} for i in range(len(values))]
    if len(columns) == 1:
        rows = [value for row in rows for value in row.values()]
    return json.dumps({"predictions": rows}).encode()


def test_the_requests_of_the_page_are_answered(exported, signatures, frames, tmp_path, monkeypatch):
    """The server is played by the saved signatures."""
    asked = []

    def urlopen(url, body):
        asked.append(url)
        return io.BytesIO(predict(signatures, body))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for name, path in (("frame.jpg", frames[0]), ("frame.png", frames[1])):
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/export").symlink_to(exported[0])
    local, remote = page_examples("deploy.md", "SavedModel")
    names = {}
    exec(compile(local, "docs/deploy.md", "exec"), names)
    np.testing.assert_array_equal(names["ids"], exported[1][0])
    assert names["classes"][2]["color"] == [70, 130, 180]
    exec(compile(remote, "docs/deploy.md", "exec"), {})
    assert asked == ["http://localhost:8501/v1/models/street:predict"]
    for name, ids in zip(("frame.jpg.ids.png", "frame.png.ids.png"), exported[1], strict=False):
        np.testing.assert_array_equal(read_png((tmp_path / name).read_bytes()), ids)


def test_the_curl_commands_of_the_page_send_such_requests(signatures, exported, frames, tmp_path):
    (tmp_path / "frame.jpg").write_bytes(frames[0].read_bytes())
    commands = re.findall(r"```\n(echo .*?)```", PAGE, re.DOTALL)
    curl = 'curl() { test "$*" = "-d @- http://localhost:8501/v1/models/street:predict" && cat; }'
    answers = []
    for command in commands:
        script = ["bash", "-c", f"{curl}\n{command}"]
        sent = subprocess.run(script, check=True, cwd=tmp_path, capture_output=True).stdout
        answers.append(json.loads(predict(signatures, sent))["predictions"][0])
    segmented, about = answers
    png = base64.b64decode(segmented["png_bytes"]["b64"])
    np.testing.assert_array_equal(read_png(png), exported[1][0])
    assert json.loads(about)["mapseg"] == mapseg.__version__
