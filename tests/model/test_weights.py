import keras
import numpy as np
import pytest

from mapseg.config import ModelConfig
from mapseg.model.deeplab import build_model
from mapseg.model.weights import (
    assign_weight_arrays,
    deeplab_names,
    load_weight_arrays,
    read_weights,
    weight_arrays,
)

CONFIG = ModelConfig(encoder="mobilenet_v2", encoder_weights="none", decoder_channels=16)


@pytest.fixture(scope="module")
def model():
    """A network that tests must not change."""
    keras.utils.set_random_seed(1)
    return build_model(CONFIG, 5)


@pytest.mark.addons
def test_deeplab_names_cover_every_weight_once():
    xception = build_model(ModelConfig(encoder="xception65", encoder_weights="none"), 21)
    # Other Keras ports of TF DeepLab's Xception-65 also count 41,258,213, with 21 classes.
    assert xception.count_params() == 41_258_213
    names = deeplab_names(xception)
    arrays = weight_arrays(xception)
    assert names.keys() == arrays.keys()
    shapes = {names[key]: array.shape for key, array in arrays.items()}
    assert len(shapes) == len(arrays) == len(xception.weights)
    unit = "unit_1/xception_module"
    middle = "xception_65/middle_flow/block1/unit_16/xception_module"
    known = {
        "xception_65/entry_flow/conv1_1/weights": (3, 3, 3, 32),
        "xception_65/entry_flow/conv1_2/BatchNorm/moving_variance": (64,),
        f"xception_65/entry_flow/block2/{unit}/shortcut/BatchNorm/gamma": (256,),
        f"{middle}/separable_conv3_depthwise/depthwise_weights": (3, 3, 728, 1),
        f"{middle}/separable_conv3_depthwise/BatchNorm/moving_mean": (728,),
        f"xception_65/exit_flow/block1/{unit}/shortcut/weights": (1, 1, 728, 1024),
        f"xception_65/exit_flow/block2/{unit}/separable_conv3_pointwise/weights": (
            1,
            1,
            1536,
            2048,
        ),
        "image_pooling/weights": (1, 1, 2048, 256),
        "aspp0/BatchNorm/beta": (256,),
        "aspp3_depthwise/depthwise_weights": (3, 3, 2048, 1),
        "aspp1_pointwise/weights": (1, 1, 2048, 256),
        "concat_projection/weights": (1, 1, 1280, 256),
        "decoder/feature_projection0/weights": (1, 1, 256, 48),
        "decoder/decoder_conv0_depthwise/depthwise_weights": (3, 3, 304, 1),
        "decoder/decoder_conv1_pointwise/BatchNorm/moving_mean": (256,),
        "logits/semantic/weights": (1, 1, 256, 21),
        "logits/semantic/biases": (21,),
    }
    assert {name: shapes.get(name) for name in known} == known
    assert not any("shortcut" in name for name in shapes if "middle_flow" in name)
    epsilons = {
        layer.name.startswith("xception_65-"): layer.epsilon
        for part in (xception, xception.get_layer("xception65"))
        for layer in part.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert epsilons == {True: 1e-3, False: 1e-5}


def test_deeplab_names_require_xception65(model):
    with pytest.raises(ValueError, match="Remedy: --encoder=xception65"):
        deeplab_names(model)


@pytest.mark.addons
def test_weights_are_read_and_assigned_by_name(model, tmp_path):
    arrays = weight_arrays(model)
    assert len(arrays) == len(model.weights)
    assert arrays["Conv1/kernel"].shape == (3, 3, 3, 32)
    assert arrays["expanded_conv_depthwise/kernel"].shape == (3, 3, 32, 1)
    assert arrays["logits-semantic/bias"].shape == (5,)
    image = np.random.default_rng(0).integers(0, 256, (1, 17, 17, 3), np.uint8)
    expected = model(image, training=False)
    np.savez(tmp_path / "weights.npz", **arrays)
    assign_weight_arrays(model, {key: array + 1 for key, array in arrays.items()})
    assert not np.allclose(model(image, training=False), expected)
    with np.load(tmp_path / "weights.npz") as stored:
        assign_weight_arrays(model, stored)
    np.testing.assert_array_equal(model(image, training=False), expected)


def test_weights_that_do_not_fit_are_listed_and_change_nothing(model):
    before = weight_arrays(model)
    arrays = {key: np.zeros_like(array) for key, array in before.items()}
    arrays["logits-semantic/bias"] = np.zeros([7], np.float32)
    del arrays["aspp0/kernel"]
    arrays["extra/kernel"] = np.zeros([1], np.float32)
    with pytest.raises(ValueError, match=r"3 differ.*Remedy: ") as error:
        assign_weight_arrays(model, arrays)
    for part in (
        "logits-semantic/bias: (5,) expected, (7,) found",
        "aspp0/kernel: (1, 1, 320, 16) expected, none found",
        "extra/kernel: none expected, (1,) found",
    ):
        assert part in str(error.value)
    after = weight_arrays(model)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_weights_file_that_does_not_fit_is_named(model, tmp_path):
    arrays = weight_arrays(model)
    np.savez(tmp_path / "fits.npz", **{key: array + 1 for key, array in arrays.items()})
    load_weight_arrays(model, tmp_path / "fits.npz")
    for key, array in weight_arrays(model).items():
        np.testing.assert_array_equal(array, arrays[key] + 1)
    np.savez(tmp_path / "other.npz", **arrays | {"aspp0/kernel": np.zeros(3)})
    with pytest.raises(ValueError, match=r"other\.npz: .*\(3,\) found\. Remedy: "):
        load_weight_arrays(model, tmp_path / "other.npz")


def _text(good, path):
    path.write_text("no weights")


def _cut(good, path):
    path.write_bytes(good[: len(good) // 2])


def _flip(good, path):
    broken = bytearray(good)
    broken[len(broken) // 3] ^= 255
    path.write_bytes(broken)


def _array(good, path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize("damage", [_text, _cut, _flip, _array])
def test_a_damaged_weights_file_is_named(model, tmp_path, damage):
    np.savez(tmp_path / "good.npz", **weight_arrays(model))  # as a checkpoint holds it
    damage((tmp_path / "good.npz").read_bytes(), tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"bad\.npz: must be a complete weights file.*Remedy"):
        read_weights(tmp_path / "bad.npz")
