import keras
import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import ModelConfig, TrainConfig
from mapseg.model.deeplab import build_model, coarse_model
from mapseg.model.encoders import build_encoder
from mapseg.model.weights import named_weights, weight_arrays
from mapseg.training.losses import make_loss

CONFIG = ModelConfig(encoder="ddrnet23_slim", output_stride=8, decoder_channels=8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder():
    """A network shared by tests, which must not change it."""
    keras.utils.set_random_seed(1)
    return build_encoder(CONFIG).model


def test_parameters_are_those_published_without_the_head(encoder):
    # The published code has 5,695,987 (5.7 M in the paper) for 19 classes: with biases in the first
    # two convolutions, which batch norm cancels, and with the head after its first batch norm.
    head = 3 * 3 * 128 * 64 + 2 * 64 + 64 * 19 + 19
    trained = sum(int(np.prod(v.shape)) for v in encoder.trainable_variables)
    assert trained == 5_695_987 - head - 2 * 32
    assert len(named_weights(encoder)) == len(encoder.weights)


@pytest.mark.addons
@pytest.mark.parametrize("steps", [(1, 1), (8, 9), (15, 6), (16, 24)])
def test_features_have_a_sample_on_every_stride_and_the_last_pixel(encoder, steps):
    image = np.zeros([2, *(8 * n + 1 for n in steps), 3], np.float32)
    low_level, features = encoder(image, training=False)
    assert low_level.shape == (2, *(2 * n + 1 for n in steps), 32)
    assert features.shape == (2, *(n + 1 for n in steps), 128)


def test_features_lie_on_their_pixels_and_have_global_context(rng):
    encoder = build_encoder(CONFIG).model
    for name, weight in named_weights(encoder).items():
        if name.endswith("kernel"):
            kernel = np.array(weight)
            kernel = kernel + kernel[::-1]
            weight.assign((kernel + kernel[:, ::-1]) / 4)
    # Kernels are symmetric, and pixels 0 and -1 lie on the grids of all strides, even of DAPPM's
    # coarsest means. So if features lie on their pixels, mirroring the image mirrors the features.
    image = rng.normal(size=(1, 513, 513, 3)).astype(np.float32)
    features = encoder(image, training=False)
    mirrored_features = encoder(image[:, ::-1, ::-1], training=False)
    for plain, mirrored in zip(features, mirrored_features, strict=True):
        plain, mirrored = plain.numpy(), mirrored.numpy()[:, ::-1, ::-1]
        np.testing.assert_allclose(plain, mirrored, rtol=0, atol=1e-4 * np.abs(plain).max())
    image[:, :16, :16] += 9
    changes = np.abs(encoder(image, training=False)[1] - features[1]).max((0, 3))
    assert changes[-1, -1] > 1e-5
    assert changes[0, 0] > 100 * changes[-1, -1]


@pytest.mark.addons
def test_logits_have_the_size_of_the_image_and_there_is_no_pyramid(rng):
    model = build_model(CONFIG, 5)
    for size in ((1, 1), (64, 47), (65, 129)):
        image = rng.integers(0, 256, (2, *size, 3), np.uint8)
        assert model(image, training=False).shape == (2, *size, 5)
    assert not any(name.startswith(("aspp", "image_pooling")) for name in weight_arrays(model))


@pytest.fixture(scope="module")
def trained_like():
    """A network with random batch norms, and its weights by name; tests must not change it."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    model = build_encoder(CONFIG).model
    for name, weight in named_weights(model).items():
        if "BatchNorm" in name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model, {name: np.array(weight) for name, weight in named_weights(model).items()}


def run_part(model, inputs, output):
    """Returns the output of a layer for given outputs of earlier layers, `inputs` by name."""
    tensors = [model.get_layer(name).output for name in inputs]
    return keras.Model(tensors, model.get_layer(output).output)(list(inputs.values()))


def norm(x, weights, name):
    gamma, beta, mean, variance = (
        weights[f"{name}-BatchNorm/{kind}"]
        for kind in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def enlarge(x, like):
    return tf.compat.v1.image.resize_bilinear(x, like.shape[1:3], align_corners=True)


def test_the_context_module_follows_the_paper(trained_like, rng):
    """DAPPM, Figure 5: y_i = C3(U(C1(pooled_i)) + y_(i-1)), y_0 = C1(x), then C1(all) + C1(x)."""
    model, weights = trained_like

    def c(x, name):
        return tf.nn.conv2d(
            tf.nn.relu(norm(x, weights, name)), weights[f"{name}/kernel"], 1, "SAME"
        )

    x = tf.constant(rng.normal(size=(1, 9, 17, 512)).astype(np.float32))
    # At sizes 8n + 1 these windows are centred on the samples, and average only those inside.
    pooled = [tf.nn.avg_pool2d(x, k, s, "SAME") for k, s in ((5, 2), (9, 4), (17, 8))]
    pooled.append(tf.reduce_mean(x, [1, 2], keepdims=True))
    scales = [c(x, "context-scale0")]
    for i, means in enumerate(pooled, start=1):
        scales.append(
            c(enlarge(c(means, f"context-scale{i}"), x) + scales[-1], f"context-process{i}")
        )
    expected = c(tf.concat(scales, -1), "context-compression") + c(x, "context-shortcut")
    ours = run_part(model, {"conv6-coarse-add": x}, "context-add")
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("stage", "steps"), [("conv4", 1), ("conv5", 2)])
def test_the_branches_exchange_features_as_in_the_paper(trained_like, rng, stage, steps):
    """Equation 1: each branch adds the other's earlier features; ReLU follows the sums."""
    model, weights = trained_like
    fine = tf.constant(rng.normal(size=(1, 9, 17, 64)).astype(np.float32))
    coarse_shape = (1, 8 // 2**steps + 1, 16 // 2**steps + 1, 64 * 2**steps)
    coarse = tf.constant(rng.normal(size=coarse_shape).astype(np.float32))
    down = tf.nn.relu(fine)
    for i in range(1, steps + 1):
        name = f"{stage}-exchange-down{i}"
        around = tf.pad(down, [[0, 0], [1, 1], [1, 1], [0, 0]])
        down = norm(tf.nn.conv2d(around, weights[f"{name}/kernel"], 2, "VALID"), weights, name)
        down = tf.nn.relu(down) if i < steps else down
    name = f"{stage}-exchange-up"
    up = norm(tf.nn.conv2d(tf.nn.relu(coarse), weights[f"{name}/kernel"], 1, "SAME"), weights, name)
    inputs = {f"{stage}-fine-block2-add": fine, f"{stage}-coarse-block2-add": coarse}
    for branch, expected in (("fine", fine + enlarge(up, fine)), ("coarse", coarse + down)):
        ours = run_part(model, inputs, f"{stage}-exchange-{branch}")
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_xla_compiles_the_context_module_in_half_precision(rng):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = build_encoder(CONFIG).model
    keras.mixed_precision.set_global_policy("float32")
    inputs = [model.get_layer(f"conv6-{branch}-add").output for branch in ("coarse", "fine")]
    part = keras.Model(inputs, model.get_layer("head-add").output)

    @tf.function(jit_compile=True)
    def run(*features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            output = part(features, training=True)
            total = tf.reduce_sum(tf.cast(output, tf.float32) ** 2)
        return output, tape.gradient(total, features)

    shapes = (2, 2, 3, 512), (2, 9, 17, 128)
    output, gradients = run(*(tf.constant(rng.normal(size=s), tf.bfloat16) for s in shapes))
    assert output.dtype == tf.bfloat16
    for gradient in gradients:
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()
        assert np.any(tf.cast(gradient, tf.float32) != 0)


def test_half_precision_is_used_in_every_convolution_and_stays_accurate(rng):
    precise = build_encoder(CONFIG).model
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    rough = build_encoder(CONFIG).model
    keras.mixed_precision.set_global_policy("float32")
    assert {x.compute_dtype for x in rough.layers if x.weights} == {"bfloat16"}
    rough.set_weights(precise.get_weights())
    image = rng.normal(size=(1, 129, 193, 3)).astype(np.float32)
    expected, actual = precise(image)[1], rough(image)[1]
    assert actual.dtype == tf.bfloat16
    difference = np.abs(tf.cast(actual, tf.float32) - expected)
    assert difference.mean() < 0.02 * np.abs(expected).mean()


def test_saved_weights_can_be_loaded(encoder, tmp_path):
    path = tmp_path / "own.weights.h5"
    encoder.save_weights(path)
    again = build_encoder(ModelConfig(**{**vars(CONFIG), "encoder_weights": str(path)})).model
    for ours, theirs in zip(encoder.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.addons
def test_every_weight_learns():
    keras.utils.set_random_seed(1)
    model = build_model(ModelConfig(**{**vars(CONFIG), "dropout": 0.0}), 3)
    forward, factor = coarse_model(model)
    loss_of = make_loss(TrainConfig())
    label = np.arange(96, dtype=np.uint8) // 32 * np.ones([2, 65, 1], np.uint8)
    image = np.stack([100 * label] * 3, axis=-1)
    losses = []
    for _ in range(4):
        with tf.GradientTape() as tape:
            total, pixels = loss_of(forward(image), label, factor)
            loss = total / pixels
        gradients = tape.gradient(loss, model.trainable_variables)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            variable.assign_sub(3 * gradient)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
