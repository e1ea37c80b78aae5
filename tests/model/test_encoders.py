import http.server
import threading
import time
import urllib.request

import h5py
import keras
import numpy as np
import pytest

from mapseg.config import ENCODERS, ModelConfig
from mapseg.model import pretrained
from mapseg.model.encoders import build_encoder
from mapseg.model.pretrained import resolve_encoder_weights
from mapseg.model.weights import named_weights

IMAGE = np.random.default_rng(0).normal(size=(1, 65, 97, 3)).astype(np.float32)


def config(encoder, **options):
    return ModelConfig(encoder=encoder, **{"encoder_weights": "none", **options})


def scramble(model):
    """Makes kernels their own mirror image, and batch norms those of a trained network."""
    rng = np.random.default_rng(1)
    for name, weight in named_weights(model).items():
        if name.endswith("gamma"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif name.endswith("beta"):
            weight.assign(rng.normal(0, 0.3, weight.shape))
        elif name.endswith("kernel"):
            kernel = np.array(weight)
            kernel = kernel + kernel[::-1]
            weight.assign((kernel + kernel[:, ::-1]) / 2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(IMAGE, training=True)


def run(model, image=IMAGE):
    return [features.numpy() for features in model(image, training=False)]


def assert_near(actual, expected, tolerance=1e-5):
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.fixture
def float64():
    """Rounding grows over sixty layers with random weights: only float64 shows what is equal."""
    keras.mixed_precision.set_global_policy("float64")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    "name",
    [
        "xception65",
        "resnet50",
        pytest.param("mobilenet_v2", marks=pytest.mark.addons),
        "efficientnet_lite0",
    ],
)
def test_denser_features_are_the_same_and_lie_on_their_pixels(name, float64):
    models = {s: build_encoder(config(name, output_stride=s)).model for s in (32, 16, 8)}
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
    # Kernels are their own mirror image: features that lie on pixels 0, s, 2 s, ... of a side of
    # 16 k + 1 pixels mirror with the image, features beside them do not.
    mirrored = run(models[16], IMAGE[:, ::-1, ::-1])
    assert_near(mirrored[0], low_level[0][:, ::-1, ::-1], 1e-8)
    assert_near(mirrored[1], features[1][:, ::-1, ::-1], 1e-8)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("xception65", 38_052_512),
        ("resnet50", 23_587_712),  # as Keras counts it without its top
        ("mobilenet_v2", 2_257_984 - (320 * 1280 + 4 * 1280)),  # and without its last convolution
    ],
)
def test_encoders_have_the_published_parameters_and_own_names(name, parameters):
    model = build_encoder(config(name, batch_norm_momentum=0.75)).model
    assert model.count_params() == parameters
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)
    assert len(named_weights(model)) == len(model.weights)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) > 50
    assert {norm.momentum for norm in norms} == {0.75}


SOURCES = {
    "resnet50": (keras.applications.ResNet50, "conv5_block3_out"),
    "mobilenet_v2": (keras.applications.MobileNetV2, "block_16_project_BN"),
}


def build_source(name):
    """Builds the network of keras.applications, and itself up to where the encoder ends."""
    build, last = SOURCES[name]
    source = build(weights=None, include_top=False, input_shape=IMAGE.shape[1:])
    scramble(source)
    return source, keras.Model(source.input, source.get_layer(last).output)


def write_h5(path, model):
    """Writes the .h5 format of Keras 1 and 2, in which its ImageNet weights are published."""
    layers = [*model.layers]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/weight{i}:0" for i in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = np.array(weight)


@pytest.mark.addons
@pytest.mark.parametrize(
    ("name", "file"), [("resnet50", "old.h5"), ("mobilenet_v2", "new.weights.h5")]
)
def test_a_weights_file_of_keras_gives_the_network_of_keras(name, file, tmp_path):
    source, expected = build_source(name)
    path = tmp_path / file
    if file == "old.h5":
        write_h5(path, source)
    else:
        source.save_weights(path)
    model = build_encoder(config(name, encoder_weights=str(path), output_stride=32)).model
    assert_near(run(model)[1], expected(IMAGE, training=False).numpy())


def test_own_weights_come_back_and_what_does_not_fit_is_named(tmp_path):
    model = build_encoder(config("mobilenet_v2")).model
    path = tmp_path / "own.weights.h5"
    model.save_weights(path)
    again = build_encoder(config("mobilenet_v2", encoder_weights=str(path))).model
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    with pytest.raises(ValueError, match=r"own\.weights\.h5: .* not fit is conv1_conv, .* 64"):
        build_encoder(config("resnet50", encoder_weights=str(path)))

    write_h5(tmp_path / "old.h5", model)
    with h5py.File(tmp_path / "old.h5", "a") as file:
        del file["block_2_project/block_2_project/weight0:0"]
        file["block_2_project/block_2_project/weight0:0"] = np.zeros([1, 1, 7, 24], np.float32)
    with pytest.raises(ValueError, match=r"old\.h5: .* is block_2_project, .*144.*7, 24"):
        build_encoder(config("mobilenet_v2", encoder_weights=str(tmp_path / "old.h5")))

    (tmp_path / "half.h5").write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"half\.h5: .* whole Keras weights file"):
        build_encoder(config("mobilenet_v2", encoder_weights=str(tmp_path / "half.h5")))

    with pytest.raises(FileNotFoundError, match=r"none\.h5"):
        build_encoder(config("mobilenet_v2", encoder_weights=str(tmp_path / "none.h5")))


def test_auto_is_imagenet_where_there_are_such_weights():
    configs = [config(e, encoder_weights="auto", output_stride=8) for e in ENCODERS]
    assert [*map(resolve_encoder_weights, configs)] == ["none", *["imagenet"] * 4, "none"]
    assert resolve_encoder_weights(config("resnet50", encoder_weights="a.h5")) == "a.h5"
    with pytest.raises(ValueError, match=r"xception65.*Remedy: --encoder_weights=none"):
        build_encoder(config("xception65", encoder_weights="imagenet"))


def test_a_silent_network_ends_in_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_NETWORK_TIMEOUT_SECS", 0.2)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: time.sleep(60))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        build_encoder(config("resnet50", encoder_weights="imagenet"))
    assert time.monotonic() - start < 5
    file = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    for part in (
        f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{file}",
        str(tmp_path / "models" / file),
        "--encoder_weights=none",
    ):
        assert part in str(error.value)


def test_a_download_is_whole_or_leaves_nothing(tmp_path, monkeypatch):
    source, expected = build_source("mobilenet_v2")
    write_h5(tmp_path / "source.h5", source)
    content = (tmp_path / "source.h5").read_bytes()
    sent = len(content) // 2

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:sent])

        def log_message(self, *_):
            pass

    models_dir = tmp_path / "keras" / "models"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/weights.h5"
        monkeypatch.setitem(pretrained._IMAGENET_URLS, "mobilenet_v2", url)
        with pytest.raises(FileNotFoundError, match=r"IncompleteRead.*--encoder_weights=none"):
            build_encoder(config("mobilenet_v2", encoder_weights="imagenet"))
        assert not models_dir.exists()
        sent = len(content)
        build_encoder(config("mobilenet_v2", encoder_weights="imagenet"))
        server.shutdown()
    assert [path.name for path in models_dir.iterdir()] == ["weights.h5"]
    # From now on no network is needed.
    model = build_encoder(config("mobilenet_v2", encoder_weights="auto", output_stride=32)).model
    assert_near(run(model)[1], expected(IMAGE, training=False).numpy())
