import numpy as np
import pytest
import tensorflow as tf

from mapseg.model.resampling import Upsample, WindowMeans, interpolation_matrix, resizing_matrix


@pytest.mark.addons
def test_interpolation_matrix_by_hand():
    matrix = interpolation_matrix(tf.constant([0.0, 0.5, 1.0, 2.25, -1.0, 9.0]), 4)
    expected = [
        [1, 0, 0, 0],
        [0.5, 0.5, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0.75, 0.25],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(matrix, np.array(expected, np.float32))
    np.testing.assert_array_equal(interpolation_matrix(tf.constant([0.0, 3.0]), 1), [[1], [1]])


@pytest.mark.addons
def test_upsampling_reproduces_a_ramp_and_cuts_it_to_size():
    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 2]), tf.TensorSpec([None, None, None, 3])]
    )
    def upsample(x, like):
        return Upsample(4)([x, like])

    rows, columns = np.meshgrid(np.arange(18) / 4, np.arange(11) / 4, indexing="ij")
    fine = np.stack([rows, 8 + 2 * columns - rows], axis=-1)[np.newaxis].astype(np.float32)
    coarse = np.stack([fine[:, ::4, ::4][0], np.ones([5, 3, 2])])
    coarse[0, ..., 0] = np.arange(5)[:, np.newaxis]
    up = upsample(coarse, np.zeros([2, 17, 9, 3]))
    np.testing.assert_array_equal(up[0], fine[0, :17, :9])
    np.testing.assert_array_equal(up[1], np.ones([17, 9, 2]))
    np.testing.assert_array_equal(upsample(coarse, np.zeros([2, 15, 6, 3]))[0], fine[0, :15, :6])


@pytest.mark.addons
@pytest.mark.parametrize("size", [(1, 3), (8, 9), (13, 6)])
@pytest.mark.parametrize(("window", "stride"), [(5, 2), (9, 4)])
def test_window_means_are_over_existing_samples_only(size, window, stride):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    means = tf.function(WindowMeans(window, stride))(x)
    half = window // 2
    expected = [
        [
            x[:, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
            for column in range(0, size[1], stride)
        ]
        for row in range(0, size[0], stride)
    ]
    assert means.shape == (2, len(expected), len(expected[0]), 3)
    for row, windows in enumerate(expected):
        for column, samples in enumerate(windows):
            np.testing.assert_allclose(means[:, row, column], samples.mean((1, 2)), atol=1e-6)


@pytest.mark.addons
@pytest.mark.parametrize(("size", "resized"), [(90, 31), (31, 90), (1, 4), (7, 1), (64, 64)])
def test_the_matrix_resizes_as_tensorflow_does(size, resized):
    column = np.random.default_rng(2).uniform(0, 255, [size, 1, 1]).astype(np.float32)
    expected = tf.image.resize(column, [resized, 1], antialias=True)[:, :, 0]
    product = tf.matmul(resizing_matrix(tf.constant(size), tf.constant(resized)), column[:, :, 0])
    np.testing.assert_allclose(product, expected, atol=1e-3)
