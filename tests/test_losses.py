import numpy as np
import pytest
import tensorflow as tf

from mapseg.labels import VOID
from mapseg.losses import cross_entropy
from mapseg.resampling import Upsample


def test_cross_entropy_worked_by_hand():
    # softmax of (0, ln 3) is (1/4, 3/4)
    logits = tf.constant([[[[0.0, np.log(3)], [0.0, np.log(3)], [5.0, -5.0]]]], tf.float32)
    total, pixels = cross_entropy(logits, tf.constant([[[0, 1, VOID]]], tf.uint8))
    assert float(total) == pytest.approx(np.log(4) + np.log(4 / 3))
    assert float(pixels) == 2


def test_void_pixels_give_no_gradient():
    logits = tf.Variable(tf.random.stateless_normal([1, 2, 2, 3], (1, 2)))
    with tf.GradientTape() as tape:
        total, pixels = cross_entropy(logits, tf.constant([[[0, VOID], [2, VOID]]], tf.uint8))
    gradient = tape.gradient(total, logits).numpy()
    assert float(pixels) == 2
    assert not gradient[:, :, 1].any()
    assert gradient[:, :, 0].all()


def test_a_batch_without_labels_is_zero_not_nan():
    total, pixels = cross_entropy(
        tf.ones([1, 2, 2, 3]), tf.fill([1, 2, 2], tf.constant(VOID, tf.uint8))
    )
    assert float(total) == float(pixels) == 0


@pytest.mark.addons
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("factor", "size"), [(1, (3, 4)), (2, (5, 7)), (4, (9, 13)), (4, (7, 10))])
def test_up_sampled_logits_give_the_loss_and_gradient_of_whole_ones(factor, size, compiled):
    rng = np.random.default_rng(0)
    coarse = [-(-(side - 1) // factor) + 1 for side in size]
    logits = tf.constant(rng.normal(size=[2, *coarse, 5]).astype(np.float32))
    label = rng.integers(0, 6, [2, *size]).astype(np.uint8)
    label[label == 5] = VOID
    label = tf.constant(label)

    def whole(logits):
        fine = Upsample(factor, dtype="float32")([logits, label])
        wanted = tf.one_hot(label, 5)  # VOID has none
        return -tf.reduce_sum(wanted * tf.nn.log_softmax(fine)), tf.reduce_sum(wanted)

    def found(logits):
        return cross_entropy(logits, label, factor)

    def with_gradient(loss):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            total, pixels = loss(logits)
            scaled = 2.5 * total
        return total, pixels, tape.gradient(scaled, logits)

    expected = with_gradient(whole)
    for value, right in zip(
        tf.function(with_gradient, jit_compile=compiled)(found), expected, strict=True
    ):
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-5)
