import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.labels import VOID
from mapseg.model.resampling import Upsample
from mapseg.training.losses import class_weights, make_loss

# softmax of (0, ln 3) is (1/4, 3/4)
QUARTERS = tf.constant([[[[0.0, np.log(3)], [0.0, np.log(3)], [5.0, -5.0]]]], tf.float32)
FIRST_AND_SECOND = tf.constant([[[0, 1, VOID]]], tf.uint8)


def loss_of(loss, logits, label, factor=1, pixels=(), **options):
    """Returns the mean over the labelled pixels."""
    total, count = make_loss(TrainConfig(loss=loss, **options), pixels)(logits, label, factor)
    return float(total) / float(count)


def test_cross_entropy_worked_by_hand():
    total, pixels = make_loss(TrainConfig(loss="ce"))(QUARTERS, FIRST_AND_SECOND, 1)
    assert float(total) == pytest.approx(np.log(4) + np.log(4 / 3))
    assert float(pixels) == 2


@pytest.mark.parametrize(
    ("scale", "offset", "smoothing"),
    [(1e-3, 0, 0.0), (1.0, 0, 0.1), (30.0, 0, 0.1), (1e4, 0, 0.0), (1.0, 1e4, 0.0)],
)
def test_cross_entropy_equals_tensorflows(scale, offset, smoothing):
    rng = np.random.default_rng(0)
    logits = tf.constant(offset + scale * rng.normal(size=[1, 8, 9, 19]), tf.float32)
    label = rng.integers(0, 19, [1, 8, 9])
    targets = np.eye(19)[label] * (1 - smoothing) + smoothing / 19

    def gradient_of(loss):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss()
        return value, tape.gradient(value, logits)

    ours = make_loss(TrainConfig(loss="ce", label_smoothing=smoothing))
    actual = gradient_of(lambda: ours(logits, tf.constant(label, tf.uint8), 1)[0])
    expected = gradient_of(
        lambda: tf.reduce_sum(
            tf.nn.softmax_cross_entropy_with_logits(tf.constant(targets, tf.float32), logits)
        )
    )
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-6)


def test_label_smoothing_worked_by_hand():
    # Targets (0.9, 0.1) and (0.1, 0.9): Szegedy et al. 2016 with 0.2 over two classes.
    first = 0.9 * np.log(4) + 0.1 * np.log(4 / 3)
    second = 0.1 * np.log(4) + 0.9 * np.log(4 / 3)
    smoothed = loss_of("ce", QUARTERS, FIRST_AND_SECOND, label_smoothing=0.2)
    assert smoothed == pytest.approx((first + second) / 2)


def test_class_weights_worked_by_hand():
    # ENet: 1 / ln(1.02 + p) for p = 3/4 and 1/4, divided by the mean over the pixels.
    rare, common = 1 / np.log(1.27), 1 / np.log(1.77)
    mean = 0.75 * common + 0.25 * rare
    np.testing.assert_allclose(class_weights([30, 10]), [common / mean, rare / mean], rtol=1e-6)
    assert class_weights([30, 10]) @ [0.75, 0.25] == pytest.approx(1)
    assert class_weights([1, 0, 1])[1] == class_weights([1, 0, 1]).max()  # finite if absent
    weighted = loss_of("ce", QUARTERS, FIRST_AND_SECOND, pixels=[30, 10], class_weights=True)
    expected = common / mean * np.log(4) + rare / mean * np.log(4 / 3)
    assert weighted == pytest.approx(expected / 2)
    with pytest.raises(ValueError, match="class_weights must have the pixels"):
        make_loss(TrainConfig(class_weights=True))


def test_ohem_takes_the_hardest_labelled_pixels():
    # Three labelled pixels with losses ln 4, ln 4/3 and ln 2: half of them, rounded up, is two.
    logits = tf.concat([QUARTERS, tf.zeros([1, 1, 1, 2])], 2)
    label = tf.constant([[[0, 1, VOID, 1]]], tf.uint8)
    hardest_two = loss_of("ohem", logits, label, ohem_share=0.5)
    assert hardest_two == pytest.approx((np.log(4) + np.log(2)) / 2)
    hardest = loss_of("ohem", logits, label, ohem_share=0.1)
    assert hardest == pytest.approx(np.log(4))
    assert loss_of("ohem", logits, label, ohem_share=1.0) == pytest.approx(
        loss_of("ce", logits, label)
    )


def test_focal_loss_worked_by_hand():
    # -(1 - p)^2 ln p for p = 1/4 and 3/4
    expected = (9 / 16 * np.log(4) + 1 / 16 * np.log(4 / 3)) / 2
    assert loss_of("focal", QUARTERS, FIRST_AND_SECOND) == pytest.approx(expected)


def test_lovasz_softmax_worked_by_hand():
    # Probabilities of class 1: 3/4, 3/4; the first pixel is of class 0, the second of class 1.
    # Errors of class 1 in descending order: 3/4 (background), 1/4 (foreground). The Jaccard loss
    # of the first alone is 1 - 1/2 = 1/2, of both 1 - 0/2 = 1: 3/4 * 1/2 + 1/4 * 1/2 = 1/2.
    # Of class 0: 3/4 (foreground), 1/4 (background): losses 1 and 1: 3/4 * 1 + 1/4 * 0 = 3/4.
    assert loss_of("lovasz", QUARTERS, FIRST_AND_SECOND) == pytest.approx((1 / 2 + 3 / 4) / 2)


def naive_lovasz(probabilities, ids):
    """Computes equations 8, 9 and 11 of Berman et al. 2018, set by set."""
    losses = []
    for c in np.unique(ids):
        errors = np.where(ids == c, 1 - probabilities[:, c], probabilities[:, c])
        order = np.argsort(-errors)

        def jaccard_loss(wrong, target=ids == c):
            """Computes equation 4: one minus the IoU if exactly these pixels are wrong."""
            wrong = np.isin(np.arange(len(ids)), wrong)
            predicted = np.where(wrong, ~target, target)
            return 1 - (predicted & target).sum() / (predicted | target).sum()

        slopes = [jaccard_loss(order[: i + 1]) - jaccard_loss(order[:i]) for i in range(len(ids))]
        losses.append(errors[order] @ slopes)
    return np.mean(losses)


def test_lovasz_softmax_is_the_extension_of_the_jaccard_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=[2, 3, 5, 4]).astype(np.float32)
    label = rng.integers(0, 3, [2, 3, 5]).astype(np.uint8)  # class 3 is absent
    label[0, 0, :3] = VOID
    labelled = label != VOID
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = naive_lovasz(probabilities[labelled].astype(np.float64), label[labelled])
    assert loss_of("lovasz", tf.constant(logits), tf.constant(label)) == pytest.approx(expected)
    # A confident, correct prediction has loss 0; a confident, wrong one the Jaccard loss.
    guess = np.where(label == VOID, 3, label)
    sure = tf.one_hot(guess, 4) * 100
    assert loss_of("lovasz", sure, tf.constant(label)) == pytest.approx(0, abs=1e-6)
    guess[1, 2, :2] = (label[1, 2, :2] + 1) % 3
    ious = [
        (labelled & (guess == c) & (label == c)).sum()
        / (labelled & ((guess == c) | (label == c))).sum()
        for c in range(3)
    ]
    wrong = loss_of("lovasz", tf.one_hot(guess, 4) * 100, tf.constant(label))
    assert wrong == pytest.approx(1 - np.mean(ious))


def test_lovasz_softmax_uses_the_pixels_on_samples_of_the_logits():
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=[1, 3, 4, 3]).astype(np.float32))
    label = rng.integers(0, 3, [1, 9, 13]).astype(np.uint8)
    sampled = loss_of("lovasz", logits, tf.constant(label[:, ::4, ::4]))
    assert loss_of("lovasz", logits, tf.constant(label), 4) == pytest.approx(sampled)


def test_losses_add_up():
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=[1, 3, 4, 3]).astype(np.float32))
    label = tf.constant(rng.integers(0, 3, [1, 9, 13]).astype(np.uint8))
    parts = [loss_of(name, logits, label, 4) for name in ("ce", "lovasz")]
    assert loss_of("ce+lovasz", logits, label, 4) == pytest.approx(sum(parts))


@pytest.mark.parametrize("loss", ["", "ce+", "ce+ce", "dice", "ce,lovasz"])
def test_an_unknown_loss_is_refused(loss):
    with pytest.raises(ValueError, match="loss must be of ce, ohem, focal, lovasz, joined by"):
        TrainConfig(loss=loss)


@pytest.mark.parametrize(
    "options",
    [{"loss": "focal", "label_smoothing": 0.1}, {"loss": "lovasz", "class_weights": True}],
)
def test_an_option_that_the_loss_does_not_use_is_refused(options):
    with pytest.raises(
        ValueError, match=f"must be used with a loss of ce, .*loss={options['loss']}"
    ):
        TrainConfig(**options)


ALL = "ce+ohem+focal+lovasz"


def test_void_pixels_give_no_gradient():
    logits = tf.Variable(tf.random.stateless_normal([1, 2, 2, 3], (1, 2)))
    label = tf.constant([[[0, VOID], [2, VOID]]], tf.uint8)
    with tf.GradientTape() as tape:
        total, pixels = make_loss(TrainConfig(loss=ALL))(logits, label, 1)
    gradient = tape.gradient(total, logits).numpy()
    assert float(pixels) == 2
    assert not gradient[:, :, 1].any()
    assert gradient[:, :, 0].any()


@pytest.mark.parametrize("loss", [*ALL.split("+"), ALL])
def test_a_batch_without_labels_is_zero_not_nan(loss):
    logits = tf.Variable(tf.ones([1, 2, 2, 3]))
    with tf.GradientTape() as tape:
        total, pixels = make_loss(TrainConfig(loss=loss))(
            logits, tf.fill([1, 2, 2], tf.constant(VOID, tf.uint8)), 1
        )
    assert float(total) == float(pixels) == 0
    assert not tape.gradient(total, logits).numpy().any()


@pytest.mark.addons
@pytest.mark.parametrize(
    ("factor", "size", "compiled"),
    [(1, (3, 4), False), (2, (5, 7), False), (4, (9, 13), False), (4, (7, 10), True)],
)
def test_loss_and_gradient_equal_those_of_up_sampled_logits(factor, size, compiled):
    rng = np.random.default_rng(0)
    coarse = [-(-(side - 1) // factor) + 1 for side in size]
    logits = tf.constant(rng.normal(size=[2, *coarse, 5]).astype(np.float32))
    label = rng.integers(0, 6, [2, *size]).astype(np.uint8)
    label[label == 5] = VOID
    label = tf.constant(label)

    def upsampled_loss(logits):
        fine = Upsample(factor, dtype="float32")([logits, label])
        targets = tf.one_hot(label, 5)  # all zero for VOID
        return -tf.reduce_sum(targets * tf.nn.log_softmax(fine)), tf.reduce_sum(targets)

    def loss(logits):
        return make_loss(TrainConfig(loss="ce"))(logits, label, factor)

    results = with_gradient(upsampled_loss, logits)
    compute = tf.function(with_gradient, jit_compile=compiled)
    for value, expected in zip(compute(loss, logits), results, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def with_gradient(loss, logits):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total, pixels = loss(logits)
        scaled = 2.5 * total
    return total, pixels, tape.gradient(scaled, logits)


@pytest.mark.addons
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_ranking_losses_equal_finite_differences(compiled):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, [1, 5, 7]).astype(np.uint8)
    label[label == 3] = VOID
    label = tf.constant(label)
    config = TrainConfig(loss=ALL, label_smoothing=0.1, class_weights=True)

    def loss(logits):
        return make_loss(config, [5, 3, 1])(logits, label, 2)

    logits = rng.normal(size=[1, 3, 4, 3]).astype(np.float32)
    direction = rng.normal(size=logits.shape).astype(np.float32)
    compute = tf.function(with_gradient, jit_compile=compiled)
    _, _, gradient = compute(loss, tf.constant(logits))
    step = 1e-3
    ahead, behind = (loss(tf.constant(logits + s * direction))[0] for s in (step, -step))
    slope = (float(ahead) - float(behind)) / (2 * step)
    assert np.sum(gradient / 2.5 * direction) == pytest.approx(slope, rel=1e-2)
