import keras
import numpy as np
import pytest
from networks_by_hand import IMAGE, assert_near, config, run, scramble

from mapseg.model.encoders import build_encoder
from mapseg.model.weights import named_weights


@pytest.fixture(scope="module")
def models(request):
    """An encoder at each output stride, by stride.

    Rounding errors grow over sixty layers with random weights: equality needs float64.
    """
    keras.utils.set_random_seed(1)
    keras.mixed_precision.set_global_policy("float64")
    options = {"batch_norm_momentum": 0.75}
    built = {
        s: build_encoder(config(request.param, output_stride=s, **options)).model
        for s in (32, 16, 8)
    }
    keras.mixed_precision.set_global_policy("float32")
    return built


@pytest.mark.parametrize(
    "models",
    [
        "xception65",
        "resnet50",
        pytest.param("mobilenet_v2", marks=pytest.mark.addons),
        "efficientnet_lite0",
    ],
    indirect=True,
)
def test_denser_features_are_the_same_and_lie_on_their_pixels(models):
    scramble(models[32])
    for stride in (16, 8):
        models[stride].set_weights(models[32].get_weights())
    low_level, features = zip(*(run(model) for model in models.values()), strict=True)

    assert [f.shape[1:3] for f in features] == [(3, 4), (5, 7), (9, 13)]
    assert np.median(np.ptp(features[0], axis=(1, 2))) > 0.5  # no constant maps
    assert_near(features[1][:, ::2, ::2], features[0], 1e-8)
    assert_near(features[2][:, ::2, ::2], features[1], 1e-8)
    assert low_level[0].shape[1:3] == (17, 25)
    assert_near(low_level[1], low_level[0], 1e-8)
    # Kernels are symmetric: mirroring an image of 16 k + 1 pixels mirrors features that lie on
    # pixels 0, s, 2 s, ..., but not features that are shifted.
    mirrored = run(models[16], IMAGE[:, ::-1, ::-1])
    assert_near(mirrored[0], low_level[0][:, ::-1, ::-1], 1e-8)
    assert_near(mirrored[1], features[1][:, ::-1, ::-1], 1e-8)


@pytest.mark.parametrize(
    ("models", "parameters"),
    [
        ("xception65", 38_052_512),
        ("resnet50", 23_587_712),  # as Keras counts it without its top
        ("mobilenet_v2", 2_257_984 - (320 * 1280 + 4 * 1280)),  # and without its last convolution
    ],
    indirect=["models"],
    scope="module",  # with that of the fixture pytest groups both tests by encoder
)
def test_encoders_have_the_published_parameters_and_unique_names(models, parameters):
    model = models[16]
    assert model.count_params() == parameters
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)
    assert len(named_weights(model)) == len(model.weights)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) > 50
    assert {norm.momentum for norm in norms} == {0.75}
