"""The graph for converters gives the predictor's ids at every scale."""

import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import PredictConfig
from mapseg.inference.export.whole_job import make_whole_job
from mapseg.inference.predictor import Predictor
from mapseg.model.network import Network

STRIDE, CLASSES, LONG_SIDE_PX = 4, 7, 120
SIZES = ((1, 1), (5, 90), (61, 83), (120, 75))


def make_network():
    """One convolution with random weights, whose classes change every few pixels."""
    kernel = np.random.default_rng(0).normal(size=[5, 5, 3, CLASSES]).astype(np.float32)

    def logits(images):
        border = STRIDE + 1 - tf.shape(images)[1:3] % STRIDE
        x = tf.pad(
            tf.cast(images, tf.float32) - 127, [[0, 0], [0, border[0]], [0, border[1]], [0, 0]]
        )
        return tf.nn.conv2d(x, kernel, STRIDE, "SAME")

    return Network(logits, STRIDE)


@pytest.mark.addons
@pytest.mark.parametrize(
    "options",
    [{"scale": "1"}, {"scale": "0.5"}, {"scale": "0.37"}, {"scale": "1.6"}]
    + [{"scale": "auto"}, {"scale": "auto", "scales": "0.75"}, {"scale": "2", "scales": "0.5"}],
    ids=str,
)
def test_the_ids_are_those_of_the_predictor(options):
    config = PredictConfig(tile_px=1025, **options)
    network = make_network()
    predictor = Predictor(network, config, LONG_SIDE_PX)
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8)
    segment = tf.function(make_whole_job(network, config, LONG_SIDE_PX), input_signature=[spec])
    for size in SIZES:
        images = np.random.default_rng(1).integers(0, 256, [2, *size, 3], np.uint8)
        ids = segment(images).numpy()
        assert (ids.dtype, ids.shape) == (np.uint8, (2, *size))
        expected = predictor.graph(images)["ids"].numpy()
        assert (ids == expected).mean() >= 0.999
        assert size == (1, 1) or len(np.unique(expected)) > 2
