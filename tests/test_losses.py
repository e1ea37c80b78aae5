import numpy as np
import pytest
import tensorflow as tf

from mapseg.labels import VOID
from mapseg.losses import cross_entropy


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
