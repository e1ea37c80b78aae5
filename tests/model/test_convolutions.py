import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import ModelConfig
from mapseg.model import convolutions
from mapseg.model.encoders import build_encoder


def output_and_gradients(layer, x, *, compiled):
    @tf.function(jit_compile=compiled)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
        return y, *tape.gradient(loss, [x, *layer.trainable_variables])

    return [tf.cast(v, tf.float32).numpy() for v in run(x)]


@pytest.mark.addons
@pytest.mark.parametrize(
    ("kernel_px", "rate", "size", "padding"),
    [
        (3, 1, (1, 9, 7), "same"),
        (3, 6, (2, 3, 4), "same"),
        (3, 2, (2, 9, 7), "valid"),
        (5, 2, (1, 9, 7), "same"),
    ],
)
@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D"])
def test_forms_for_xla_equal_keras(kind, kernel_px, rate, size, padding):
    options = {"kernel_size": kernel_px, "padding": padding, "dilation_rate": rate}
    options |= {"filters": 4, "use_bias": True} if kind == "Conv2D" else {"use_bias": False}
    keras.utils.set_random_seed(1)
    ours, theirs = (getattr(m, kind)(**options) for m in (convolutions, keras.layers))
    x = tf.random.normal([*size, 5])
    for layer in (ours, theirs):
        layer(x)
    ours.set_weights(theirs.get_weights())
    expected = output_and_gradients(theirs, x, compiled=False)
    results = [output_and_gradients(ours, x, compiled=False)]  # Keras's implementation
    convolutions.use_forms_for_xla([ours])
    results.append(output_and_gradients(ours, x, compiled=True))
    for values in results:
        for value, expected_value in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("encoder", "stride_2_count"),
    [("resnet50", 0), ("mobilenet_v2", 2)],
)
def test_training_for_xla_moves_no_pixels_into_the_batch(encoder, stride_2_count):
    """Keras's layers do so at an output stride of 8 or 16."""
    config = ModelConfig(encoder=encoder, encoder_weights="none", output_stride=8)
    model = build_encoder(config).model

    def operations(training):
        run = tf.function(lambda x: model(x, training=training))
        graph = run.get_concrete_function(tf.TensorSpec([1, 33, 33, 3])).graph
        return [op.type for op in graph.get_operations()]

    assert "SpaceToBatchND" in operations(True)
    convolutions.use_forms_for_xla(model.layers)
    compiled = operations(True)
    assert "SpaceToBatchND" not in compiled
    assert compiled.count("DepthwiseConv2dNative") == stride_2_count
    assert "SpaceToBatchND" in operations(False)  # evaluation is not compiled


def test_every_depthwise_convolution_of_xception_has_a_form_for_xla():
    config = ModelConfig(encoder="xception65", encoder_weights="none")
    layers = build_encoder(config).model.layers
    depthwise = [x for x in layers if isinstance(x, keras.layers.DepthwiseConv2D)]
    assert len(depthwise) == 63
    assert all(isinstance(layer, convolutions.DepthwiseConv2D) for layer in depthwise)


def test_the_gradient_of_a_half_precision_kernel_is_summed_in_float32():
    x = tf.ones([1, 64, 64, 1], tf.bfloat16)
    kernel = tf.zeros([3, 3, 1, 1], tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = convolutions.depthwise_conv(x, kernel, 1, 1)
    gradient = tape.gradient(y, kernel, tf.ones_like(y))
    assert float(gradient[1, 1, 0, 0]) == 4096  # bfloat16 stops counting ones at 256
