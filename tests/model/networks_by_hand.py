"""Encoders with weights like those of trained networks, and their features of an image."""

import keras
import numpy as np

from mapseg.config import ModelConfig
from mapseg.model.weights import named_weights

IMAGE = np.random.default_rng(0).normal(size=(1, 65, 97, 3)).astype(np.float32)


def config(encoder, **options):
    return ModelConfig(encoder=encoder, **{"encoder_weights": "none", **options})


def scramble(model):
    """Makes kernels symmetric, and batch norms random like a trained network's."""
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
