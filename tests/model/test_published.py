import csv
import json
import shutil

import keras
import numpy as np
import pytest
from deeplab_by_hand import write_deeplab_checkpoint
from PIL import Image

import infer_main
from mapseg.config import ModelConfig, PredictConfig
from mapseg.inference.predictor import Predictor
from mapseg.inference.reading import read_image
from mapseg.labels import LabelClass, make_label_set
from mapseg.mapping import read_mapping
from mapseg.model import published as published_networks
from mapseg.model.deeplab import build_model
from mapseg.model.network import frozen_network
from mapseg.model.published import load_deeplab
from mapseg.model.weights import assign_weight_arrays, deeplab_names, weight_arrays
from mapseg.training.initial_weights import init_weights

LABELS = make_label_set([LabelClass(i, f"c{i}", (i, i, i)) for i in range(21)], "all")
XCEPTION = ModelConfig(encoder="xception65", encoder_weights="none")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint like TF DeepLab's for Cityscapes, its variables, and the network."""
    keras.utils.set_random_seed(1)
    model = build_model(XCEPTION, 19)
    arrays = weight_arrays(model)
    rng = np.random.default_rng(1)
    arrays["logits-semantic/kernel"] = rng.normal(size=[1, 1, 256, 19]).astype(np.float32)
    assign_weight_arrays(model, arrays)
    noise = rng.integers(0, 256, [1, 33, 65, 3], np.uint8)
    arrays["logits-semantic/bias"] = -model(noise).numpy().mean((0, 1, 2))  # no class dominates
    assign_weight_arrays(model, arrays)
    stored = {name: arrays[key] for key, name in deeplab_names(model).items()}
    stored["global_step"] = np.array(90_000, np.int64)
    stored["aspp0/weights/Momentum"] = np.ones_like(stored["aspp0/weights"])
    prefix = tmp_path_factory.mktemp("deeplabv3_cityscapes_train") / "model.ckpt"
    write_deeplab_checkpoint(str(prefix), stored)
    return prefix, stored, model


def test_a_published_network_segments_frames_without_training(
    published, tmp_path, monkeypatch, capsys
):
    _, stored, model = published
    prefix = str(tmp_path / "model.ckpt")
    write_deeplab_checkpoint(prefix, stored)
    rng = np.random.default_rng(2)
    (tmp_path / "in").mkdir()
    for name, size in (("a", (32, 512)), ("b", (64, 1024))):
        image = rng.integers(0, 256, [size[0] // 4, size[1] // 4, 3]).repeat(4, 0).repeat(4, 1)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "in" / f"{name}.png")
    out_dir = tmp_path / "out"
    flags = [f"--init_checkpoint={prefix}", f"--frames={tmp_path / 'in'}", f"--out_dir={out_dir}"]
    assert infer_main.main(["infer_main.py", *flags]) == 0, capsys.readouterr().err

    predictor = Predictor(frozen_network(model), PredictConfig(), 2048)
    for name in "ab":
        expected, *_ = predictor.segment(read_image(tmp_path / "in" / f"{name}.png"))
        with Image.open(out_dir / "ids" / f"{name}.png") as label:
            np.testing.assert_array_equal(np.asarray(label), expected)
            palette = np.reshape(label.getpalette()[: 3 * 19], [19, 3]).tolist()
        assert len(np.unique(expected)) > 1
        assert (out_dir / "overlay" / f"{name}.jpg").is_file()
    assert palette[:2] == [[128, 64, 128], [244, 35, 232]]
    assert palette[13] == [0, 0, 142]
    assert palette[18] == [119, 11, 32]
    assert (out_dir / "legend.png").is_file()
    with (out_dir / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scale"] for row in rows] == ["4", "2"]  # to the long side of Cityscapes
    assert list(rows[0])[-19:][::6] == ["share:road", "share:traffic light", "share:rider"] + [
        "share:bicycle"
    ]

    assert "model.ckpt (" in json.loads((out_dir / "inference.json").read_text())["fingerprint"]
    write_deeplab_checkpoint(prefix, stored | {"aspp0/weights": 2 * stored["aspp0/weights"]})
    monkeypatch.setattr(published_networks, "load_deeplab", lambda _: (model, LABELS))
    assert infer_main.main(["infer_main.py", *flags]) == 1  # different weights under the same name
    assert "another --out_dir" in capsys.readouterr().err


def test_label_ids_are_those_of_cityscapes(published, tmp_path, monkeypatch, capsys):
    prefix, _, model = published
    monkeypatch.setattr(published_networks, "build_model", lambda *_, **__: model)
    _, label_set = load_deeplab(str(prefix))
    targets = read_mapping("vistas_to_cityscapes19").label_set
    assert label_set.classes == targets.classes
    assert label_set.source_to_train == targets.source_to_train

    image = np.random.default_rng(3).integers(0, 256, [40, 1024, 3]).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    stored = []
    for ids in ("train", "label"):
        flags = [f"--init_checkpoint={prefix}", f"--frames={tmp_path / 'in'}", f"--ids={ids}"]
        flags.append(f"--out_dir={tmp_path / ids}")
        assert infer_main.main(["infer_main.py", *flags]) == 0, capsys.readouterr().err
        with Image.open(tmp_path / ids / "ids" / "a.png") as label:
            stored.append(np.asarray(label.convert("RGB")))
            stored.append(np.asarray(label))
    train_colors, train_ids, label_colors, label_ids = stored
    np.testing.assert_array_equal(train_colors, label_colors)
    official = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    np.testing.assert_array_equal(label_ids, np.array(official)[train_ids])
    assert len(np.unique(train_ids)) > 1


def test_a_path_or_checkpoint_of_another_network_is_refused(published, tmp_path, monkeypatch):
    prefix, stored, model = published
    monkeypatch.setattr(published_networks, "build_model", lambda *_, **__: model)
    other = str(tmp_path / "model.ckpt")
    for wrong in (other, f"{prefix}.index", str(prefix.parent), f"{prefix.parent}.tar.gz"):
        with pytest.raises(FileNotFoundError, match=r"the prefix of.*unpack the archive"):
            load_deeplab(wrong)

    logits = {"logits/semantic/weights": stored["logits/semantic/weights"]}
    write_deeplab_checkpoint(other, {k: np.zeros([1, 1, 256, 21], np.float32) for k in logits})
    with pytest.raises(ValueError, match=r"the 19 classes of Cityscapes.*has 21\..*init_from"):
        load_deeplab(other)
    write_deeplab_checkpoint(other, {k: v for k, v in stored.items() if k not in logits})
    with pytest.raises(ValueError, match="it has none"):
        load_deeplab(other)

    incomplete = {k: v for k, v in stored.items() if k != "concat_projection/weights"}
    incomplete["aspp0/BatchNorm/gamma"] = np.zeros([48], np.float32)
    write_deeplab_checkpoint(other, incomplete)
    with pytest.raises(ValueError) as caught:
        load_deeplab(other)
    problem = "are missing or differ in shape: aspp0/BatchNorm/gamma [256], concat_projection/weig"
    assert "2 of its" in str(caught.value)
    assert problem in str(caught.value)
    write_deeplab_checkpoint(other, logits)
    with pytest.raises(
        ValueError, match=r"xception_65/entry_flow/conv1_1/weights \[.*, \.\.\.\. Remedy: "
    ):
        load_deeplab(other)


@pytest.mark.parametrize("ending", [".index", ".data-00000-of-00001"])
def test_a_checkpoint_that_is_cut_off_is_refused(published, tmp_path, monkeypatch, ending):
    prefix, _, model = published
    monkeypatch.setattr(published_networks, "build_model", lambda *_, **__: model)
    for path in prefix.parent.glob("model.ckpt.*"):
        shutil.copy(path, tmp_path)
    cut = tmp_path / f"model.ckpt{ending}"
    incomplete = r"model\.ckpt: must be a complete TensorFlow checkpoint; .*Remedy: unpack"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ValueError, match=incomplete):
        load_deeplab(str(tmp_path / "model.ckpt"))
    with pytest.raises(ValueError, match=incomplete):
        init_weights(model, str(tmp_path / "model.ckpt"), LABELS)
    cut.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"model\.ckpt"):
        load_deeplab(str(tmp_path / "model.ckpt"))
