import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg import onednn
from mapseg.config import ModelConfig
from mapseg.model import network
from mapseg.model.deeplab import build_model
from mapseg.model.network import convertible_network, frozen_network, live_network
from mapseg.model.weights import named_weights

CLASSES = 7


def build(encoder, output_stride=16, precision="float32"):
    config = ModelConfig(
        encoder=encoder, encoder_weights="none", output_stride=output_stride, decoder_channels=16
    )
    keras.utils.set_random_seed(1)
    return build_model(config, CLASSES, precision=precision)


def batch_norms(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from batch_norms(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer


def draw_statistics(model):
    """Randomizes batch norms so that they have an effect, as after training."""
    rng = np.random.default_rng(2)
    for norm in batch_norms(model):
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights(
            [
                rng.uniform(0.5, 1.5, gamma.shape),
                rng.normal(0, 0.1, beta.shape),
                rng.normal(0, 0.1, mean.shape),
                rng.uniform(0.5, 1.5, variance.shape),
            ]
        )


def some_images(size=(70, 99), count=2):
    return np.random.default_rng(3).integers(0, 256, [count, *size, 3], np.uint8)


def logits_of(built, images):
    """Computes the logits in a graph for any size, as in prediction."""
    spec = [tf.TensorSpec([None, None, None, 3], tf.uint8)]
    return tf.function(built.logits, input_signature=spec)(images).numpy()


@pytest.mark.parametrize(
    ("encoder", "output_stride"),
    [
        ("mobilenet_v2", 16),
        ("mobilenet_v2", 8),
        ("efficientnet_lite0", 16),
        ("ddrnet23_slim", 8),
        ("resnet50", 8),
        ("xception65", 16),
    ],
)
def test_a_folded_network_has_the_logits_of_the_model(encoder, output_stride):
    model = build(encoder, output_stride)
    draw_statistics(model)
    images = some_images()
    whole = model(images, training=False).numpy()  # logit i lies on pixel 4 i
    rows, columns = (len(range(0, side, 4)) for side in whole.shape[1:3])
    within = 2e-5 * np.abs(whole).max()
    networks = {"frozen": frozen_network(model), "live": live_network(model)}
    if encoder != "resnet50":  # which has no depthwise convolutions, whose forms these are
        networks["portable"] = frozen_network(model, portable=True)
        if onednn.is_on():  # TensorFlow's own depthwise operation does not support dilation
            networks["convertible"] = convertible_network(model)
    logits = {name: logits_of(network, images) for name, network in networks.items()}
    for name, values in logits.items():
        assert (networks[name].stride, values.shape) == (4, logits["frozen"].shape)
        np.testing.assert_allclose(values, logits["live"], atol=within, rtol=0, err_msg=name)
        on_pixels = values[:, :rows, :columns]
        np.testing.assert_allclose(on_pixels, whole[:, ::4, ::4], atol=within, rtol=0, err_msg=name)


def test_without_onednn_the_logits_are_the_same():
    """TensorFlow's own depthwise operation does not support dilation."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_network as t
from mapseg import onednn
for output_stride in (8, 16):
    model = t.build("mobilenet_v2", output_stride)
    t.draw_statistics(model)
    networks = t.live_network(model), t.frozen_network(model)
    live, frozen = (t.logits_of(network, t.some_images()) for network in networks)
    print(onednn.is_on(), abs(live - frozen).max() / abs(live).max())
"""
    environment = {**os.environ, onednn.VARIABLE: "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(on, float(difference) < 2e-5) for on, difference in lines] == 2 * [("False", True)]


@pytest.mark.parametrize(("encoder", "output_stride"), [("mobilenet_v2", 16), ("ddrnet23_slim", 8)])
def test_the_graph_of_a_small_network_captures_no_variables(encoder, output_stride):
    """Otherwise an export would lack them."""
    network = frozen_network(build(encoder, output_stride), portable=True)
    assert network.variables == ()
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8)
    assert not tf.function(network.logits).get_concrete_function(spec).captured_inputs


def test_a_frozen_network_keeps_its_weights_and_a_live_one_follows_the_model():
    model = build("mobilenet_v2")
    live, frozen = live_network(model), frozen_network(model)
    images = some_images(count=1)
    before = logits_of(live, images)
    bias = model.get_layer("logits-semantic").bias
    bias.assign(bias + 1)
    np.testing.assert_allclose(logits_of(live, images), before + 1, atol=1e-4)
    np.testing.assert_allclose(logits_of(frozen, images), before, atol=1e-4)
    assert frozen.variables == ()
    assert len(live.variables) == len(model.variables)


def test_a_16_bit_network_is_not_folded():
    model = build("mobilenet_v2", precision="mixed_bfloat16")
    assert len(frozen_network(model).variables) == len(model.variables)


def test_a_large_network_holds_its_kernels_as_variables(monkeypatch):
    model = build("mobilenet_v2")
    draw_statistics(model)
    images = some_images(count=1)
    constant = logits_of(frozen_network(model), images)
    monkeypatch.setattr(network, "_MOST_CONSTANT_BYTES", 0)
    variable = frozen_network(model)
    kernels = [name for name in named_weights(model) if name.endswith("/kernel")]
    assert len(variable.variables) == len(kernels)
    np.testing.assert_allclose(logits_of(variable, images), constant, atol=1e-5, rtol=1e-5)
    model.get_layer("logits-semantic").bias.assign_add(tf.ones([CLASSES]))
    np.testing.assert_allclose(logits_of(variable, images), constant, atol=1e-5, rtol=1e-5)
