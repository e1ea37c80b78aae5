import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import ModelConfig
from mapseg.model.deeplab import build_model
from mapseg.model.layers import StatelessDropout
from mapseg.model.weights import assign_weight_arrays, weight_arrays

CONFIG = ModelConfig(encoder="mobilenet_v2", encoder_weights="none", decoder_channels=16)


@pytest.fixture
def random_image():
    rng = np.random.default_rng(0)
    return lambda height, width, batch=1: rng.integers(0, 256, (batch, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    """A network shared by tests, which must not change it."""
    keras.utils.set_random_seed(1)
    return build_model(CONFIG, 5)


@pytest.fixture(scope="module")
def xception():
    """A network shared by tests, which must not change it."""
    keras.utils.set_random_seed(1)
    return build_model(ModelConfig(encoder="xception65", encoder_weights="none"), 21)


@pytest.mark.addons
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (31, 53), (32, 47)])
def test_logits_have_the_size_of_the_image(model, random_image, size):
    logits = model(random_image(*size, batch=2), training=False)
    assert logits.shape == (2, *size, 5)
    assert logits.dtype == tf.float32


@pytest.mark.addons
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sample_i_of_every_feature_map_lies_on_pixel_i_times_stride(output_stride, random_image):
    # With kernels that are zero except at their centre, and without image pooling, the logits of a
    # pixel on the coarsest grid depend on that pixel only. A feature map or an up-sampling shifted
    # by a fraction of a pixel would mix in its neighbours. The sizes need padding.
    options = {"output_stride": output_stride, "batch_norm_momentum": 0.0, "dropout": 0.0}
    model = build_model(ModelConfig(**{**vars(CONFIG), **options}), 5)
    arrays, rng = weight_arrays(model), np.random.default_rng(1)
    for name, array in arrays.items():
        if name.endswith("kernel") and array.shape[0] == 3:
            center = array[1, 1].copy()
            array[:] = 0
            array[1, 1] = center
        elif name.endswith("beta"):
            array[:] = rng.normal(0, 0.3, array.shape)
        if name.startswith("image_pooling-BatchNorm"):
            array[:] = name.endswith("variance")
    assign_weight_arrays(model, arrays)
    image = random_image(71, 90)
    # Batch norms use the statistics of this image. With those of a new network each layer would
    # weaken the signal, until the logits are constant up to rounding.
    model(image, training=True)
    logits = model(image, training=False).numpy()
    other = random_image(71, 90)
    other[:, ::output_stride, ::output_stride] = image[:, ::output_stride, ::output_stride]
    again = model(other, training=False).numpy()
    on_grid = np.zeros([71, 90], bool)
    on_grid[::output_stride, ::output_stride] = True
    spread = np.ptp(logits[:, on_grid], axis=1).max()
    assert spread > 0.1  # the logits depend on the image
    np.testing.assert_allclose(again[:, on_grid], logits[:, on_grid], rtol=0, atol=1e-5 * spread)
    assert np.abs(again - logits)[:, ~on_grid].max() > 0.1 * spread


def test_each_encoder_has_its_normalization(xception):
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


def test_low_level_features_of_xception_are_not_rectified(xception):
    image = np.random.default_rng(0).normal(size=(1, 33, 33, 3))
    low_level = xception.get_layer("xception65")(image)[0]
    assert low_level.shape == (1, 9, 9, 256)
    assert low_level.numpy().min() < 0


@pytest.mark.addons
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_precision_applies_to_all_layers_but_the_last(model, random_image, precision):
    mixed = build_model(CONFIG, 5, precision=precision)
    compute = precision.removeprefix("mixed_")
    inside = mixed.get_layer("mobilenet_v2").layers
    assert {x.compute_dtype for x in inside if x.weights} == {compute}
    float32 = {x.name for x in mixed.layers if x.compute_dtype == "float32"} - {"mobilenet_v2"}
    assert float32 <= {"image", "image_pooling-mean", "logits-semantic", "logits-upsample"}
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
def test_dropout_depends_only_on_its_seed():
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
def test_only_training_updates_the_moving_statistics(random_image):
    model = build_model(CONFIG, 5, dropout_seed=lambda: tf.constant([1, 2]))
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
