import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import ModelConfig
from mapseg.model.deeplab import build_model
from mapseg.model.layers import StatelessDropout
from mapseg.model.weights import assign_weight_arrays, deeplab_names, weight_arrays

CONFIG = ModelConfig(encoder="mobilenet_v2", encoder_weights="none", decoder_channels=16)
RNG = np.random.default_rng(0)


def random_image(height, width, batch=1):
    return RNG.integers(0, 256, (batch, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, 5, dropout_seed=lambda: tf.constant([1, 2]))


@pytest.fixture(scope="module")
def xception():
    return build_model(ModelConfig(encoder="xception65", encoder_weights="none"), 21)


@pytest.mark.addons
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (31, 53), (32, 47)])
def test_logits_have_the_size_of_the_image(model, size):
    logits = model(random_image(*size, batch=2), training=False)
    assert logits.shape == (2, *size, 5)
    assert logits.dtype == tf.float32


@pytest.mark.addons
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sample_i_of_every_feature_map_lies_on_pixel_i_times_stride(output_stride):
    # With kernels that are zero but at their centre, and without image pooling, the logits of a
    # pixel on the coarsest grid depend on that pixel alone; a feature map or an up-sampling that
    # were off by a fraction of a pixel would mix its neighbours in. The sizes need padding.
    config = ModelConfig(**{**vars(CONFIG), "output_stride": output_stride})
    model = build_model(config, 5)
    arrays = weight_arrays(model)
    for name, array in arrays.items():
        if name.endswith("kernel") and array.shape[0] == 3:
            center = array[1, 1].copy()
            array[:] = 0
            array[1, 1] = center
        elif name.endswith(("beta", "moving_mean")):
            array[:] = RNG.normal(0, 0.3, array.shape)
        if name.startswith("image_pooling-BatchNorm"):
            array[:] = name.endswith("variance")
    assign_weight_arrays(model, arrays)
    image = random_image(71, 90)
    logits = model(image, training=False).numpy()
    other = random_image(71, 90)
    other[:, ::output_stride, ::output_stride] = image[:, ::output_stride, ::output_stride]
    again = model(other, training=False).numpy()
    on_grid = np.zeros([71, 90], bool)
    on_grid[::output_stride, ::output_stride] = True
    spread = np.ptp(logits[:, on_grid], axis=1).max()
    np.testing.assert_allclose(again[:, on_grid], logits[:, on_grid], rtol=0, atol=1e-5 * spread)
    assert np.abs(again - logits)[:, ~on_grid].max() > 0.1 * spread


def test_normalization_is_that_of_each_encoder(xception):
    image = np.zeros([1, 17, 33, 3], np.uint8)
    image[..., :] = 255, 51, 0
    unit = np.array([1, -0.6, -1], np.float32)
    normalized = xception.get_layer("normalize")(image)
    np.testing.assert_allclose(normalized[0, 5, 7], unit, atol=1e-6)
    resnet = build_model(ModelConfig(encoder_weights="none"), 3)
    normalized = resnet.get_layer("normalize")(image[:, :16, :18])
    assert normalized.shape == (1, 17, 33, 3)
    np.testing.assert_allclose(
        normalized[0, 15, 17], keras.applications.resnet50.preprocess_input(image[0, 0, 0] * 1.0)
    )
    np.testing.assert_array_equal(normalized[0, 16:], 0)
    np.testing.assert_array_equal(normalized[0, :, 18:], 0)


@pytest.mark.addons
def test_deeplab_names_cover_every_weight_once(xception):
    # 41,258,213 is also what other ports of TF DeepLab's Xception-65 to Keras count, 21 classes.
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


def test_deeplab_names_need_its_encoder(model):
    with pytest.raises(ValueError, match="Remedy: --encoder=xception65"):
        deeplab_names(model)


def test_low_level_features_of_xception_are_not_rectified(xception):
    low_level = xception.get_layer("xception65")(RNG.normal(size=(1, 33, 33, 3)))[0]
    assert low_level.shape == (1, 9, 9, 256)
    assert low_level.numpy().min() < 0


@pytest.mark.addons
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_precision_is_that_of_all_layers_but_the_last(model, precision):
    mixed = build_model(CONFIG, 5, precision=precision)
    compute = precision.removeprefix("mixed_")
    inside = mixed.get_layer("mobilenet_v2").layers
    assert {x.compute_dtype for x in inside if x.weights} == {compute}
    own = {x.name for x in mixed.layers if x.compute_dtype == "float32"} - {"mobilenet_v2"}
    assert own <= {"image", "image_pooling-mean", "logits-semantic", "logits-upsample"}
    assert {weight.dtype for weight in weight_arrays(mixed).values()} == {np.dtype(np.float32)}
    assert keras.mixed_precision.global_policy().name == "float32"

    assign_weight_arrays(mixed, weight_arrays(model))
    image = random_image(33, 49)
    precise, rough = model(image, training=False), mixed(image, training=False)
    assert rough.dtype == tf.float32
    difference = np.abs(rough - precise).max() / np.abs(precise).max()
    assert 1e-5 < difference < 0.1


def test_an_error_while_building_restores_the_precision():
    with pytest.raises(FileNotFoundError):
        build_model(ModelConfig(encoder_weights="missing.h5"), 5, precision="mixed_bfloat16")
    assert keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.addons
def test_dropout_draws_from_its_seed_alone():
    x = tf.ones([4, 9, 9, 64])
    drop = tf.function(lambda seed: StatelessDropout(0.25, lambda: seed)(x, training=True))
    first = drop(tf.constant([1, 2])).numpy()
    np.testing.assert_array_equal(first, drop(tf.constant([1, 2])))
    assert np.mean(first != drop(tf.constant([1, 3]))) > 0.2
    np.testing.assert_allclose(np.unique(first), [0, 4 / 3], rtol=1e-6)
    assert abs(np.mean(first == 0) - 0.25) < 0.02  # of 20,736 values: 6 standard deviations
    np.testing.assert_array_equal(StatelessDropout(0.25, None)(x, training=False), x)
    with pytest.raises(ValueError, match="dropout_seed must be given"):
        StatelessDropout(0.25, None)(x, training=True)


@pytest.mark.addons
def test_only_training_moves_the_statistics(model):
    before = weight_arrays(model)
    apply = tf.function(lambda image, training: model(image, training=training))
    image = random_image(33, 33, batch=2)
    apply(image, False)
    after = weight_arrays(model)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    np.testing.assert_array_equal(apply(image, True), apply(image, True))
    after = weight_arrays(model)
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert changed == {key for key in before if "/moving_" in key}


@pytest.mark.addons
def test_weights_go_out_and_in_by_name(model, tmp_path):
    arrays = weight_arrays(model)
    assert len(arrays) == len(model.weights)
    assert arrays["Conv1/kernel"].shape == (3, 3, 3, 32)
    assert arrays["expanded_conv_depthwise/kernel"].shape == (3, 3, 32, 1)
    assert arrays["logits-semantic/bias"].shape == (5,)
    image = random_image(17, 17)
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
    with pytest.raises(ValueError, match="3 differ") as error:
        assign_weight_arrays(model, arrays)
    for part in (
        "logits-semantic/bias: (5,) expected, (7,) found",
        "aspp0/kernel: (1, 1, 320, 16) expected, none found",
        "extra/kernel: unknown to the model expected, (1,) found",
    ):
        assert part in str(error.value)
    after = weight_arrays(model)
    assert all(np.array_equal(before[key], after[key]) for key in before)
