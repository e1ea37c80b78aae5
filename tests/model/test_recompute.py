import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import ModelConfig
from mapseg.model.deeplab import build_model, coarse_model
from mapseg.model.encoders import build_encoder
from mapseg.model.layers import BatchNormalization
from mapseg.model.recompute import _cut, recomputed


def loss_and_gradients(model, forward, x):
    """Returns the loss, the gradients, and all weights after the step."""

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_mean(y**2) for y in tf.nest.flatten(forward(x))])
        return loss, tape.gradient(loss, model.trainable_variables)

    loss, gradients = run(x)
    return float(loss), [np.array(g) for g in gradients], list(map(np.array, model.weights))


def assert_same(actual, expected):
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)
    largest = max(np.abs(g).max() for g in expected[1])
    for one, other in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * largest)
    for one, other in zip(actual[2], expected[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.addons
def test_recomputing_does_not_change_training():
    config = ModelConfig(
        encoder="mobilenet_v2",
        encoder_weights="none",
        output_stride=8,
        decoder_channels=8,
        dropout=0.0,
    )
    image = tf.constant(np.random.default_rng(0).integers(0, 256, [2, 49, 33, 3], np.uint8))
    results = []
    for recompute in (False, True):
        keras.utils.set_random_seed(1)
        model = build_model(config, 4)
        forward, _ = coarse_model(model, recompute=recompute)
        results.append(loss_and_gradients(model, forward, image))
    assert_same(results[1], results[0])


def test_an_output_within_a_block_is_returned():
    """Like the low-level features of Xception-65."""

    def build():
        keras.utils.set_random_seed(1)
        image = x = keras.Input((8, 8, 3))
        outputs = []
        for n in range(3):
            skip = keras.layers.Conv2D(4, 1, name=f"skip{n}")(x)
            for part in range(4):
                x = keras.layers.Conv2D(4, 3, padding="same", name=f"conv{n}-{part}")(x)
                x = BatchNormalization(name=f"norm{n}-{part}")(x)
                if (n, part) == (1, 2):
                    outputs.append(x)
            x = keras.layers.Add(name=f"add{n}")([skip, x])
        return keras.Model(image, [*outputs, x])

    x = tf.random.stateless_normal([2, 8, 8, 3], (1, 2))
    model = build()
    expected = loss_and_gradients(model, lambda x: model(x, training=True), x)
    model = build()
    assert len(_cut(model)) == 3
    assert_same(loss_and_gradients(model, recomputed(model), x), expected)


@pytest.mark.parametrize(
    ("encoder", "ends"),
    [
        ("resnet50", [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 4),  # the last: a ReLU
        ("xception65", [128, 256] + [728] * 17 + [1024, 1536, 2048, 2048]),
    ],
)
def test_encoders_are_cut_between_their_blocks(encoder, ends):
    model = build_encoder(ModelConfig(encoder=encoder, encoder_weights="none")).model
    blocks = _cut(model)
    assert [block.results[-1].shape[-1] for block in blocks] == ends
    assert sum(len(block.model.layers) - 1 for block in blocks) == len(model.layers) - 1


def test_the_compiler_does_not_merge_both_passes():
    image = keras.Input((16, 16, 4))
    x = image
    for n in range(16):
        x = keras.layers.Conv2D(4, 3, padding="same", activation="tanh", name=f"conv{n}")(x)
    model = keras.Model(image, x)

    def count_tanh(forward):
        @tf.function(jit_compile=True)
        def run(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(forward(x)[0] ** 2)
            return tape.gradient(loss, model.trainable_variables)

        text = run.experimental_get_compiler_ir(tf.ones([2, 16, 16, 4]))(stage="optimized_hlo")
        return text.count(" tanh(")

    assert count_tanh(lambda x: [model(x, training=True)]) == 16
    # Not 32: the last activation of a block may be computed in the next.
    assert count_tanh(recomputed(model)) >= 30
