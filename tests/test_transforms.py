import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.labels import VOID
from mapseg.transforms import (
    augment,
    color_jitter,
    random_crop,
    random_flip,
    random_scale,
    random_scaled_crop,
)


def coded_pair(height=5, width=7):
    """A pair in which each pixel's colour is its id."""
    label = tf.cast(tf.reshape(tf.range(height * width), [height, width]) % 250, tf.uint8)
    return tf.stack([label] * 3, axis=-1), label


def in_a_graph(function, *arguments):
    return next(iter(tf.data.Dataset.from_tensors(arguments).map(function)))


@pytest.mark.parametrize("size", [(3, 4), (8, 4), (5, 7), (9, 9)])
def test_random_crop_keeps_image_and_label_together(size):
    image, label = coded_pair()

    def crop(image, label):
        return random_crop(image, label, size, seed=(1, 2))

    eager, graph = crop(image, label), in_a_graph(crop, image, label)
    assert eager[1].shape == size
    seen = eager[1] != VOID
    np.testing.assert_array_equal(eager[1], graph[1])
    np.testing.assert_array_equal(eager[0][..., 0][seen], eager[1][seen])
    assert np.sum(seen) == min(size[0], 5) * min(size[1], 7)
    assert not np.any(eager[0][~seen])


def test_random_crop_reaches_every_place():
    image, label = coded_pair(3, 4)
    corners = {int(random_crop(image, label, (2, 2), (0, i))[1][0, 0]) for i in range(60)}
    assert corners == {0, 1, 2, 4, 5, 6}


@pytest.mark.parametrize("size", [(0, 4), (3, -1)])
def test_random_crop_refuses_an_empty_window(size):
    with pytest.raises(ValueError, match="size must be"):
        random_crop(*coded_pair(), size, (1, 2))


def test_scale_one_gives_the_stored_pixels():
    image, label = coded_pair(40, 50)
    config = TrainConfig(crop_height=9, crop_width=11, min_scale=1.0, max_scale=1.0)
    got, ids = random_scaled_crop(image, label, config, tf.constant([3, 4]))
    np.testing.assert_array_equal(got[..., 0], ids)
    np.testing.assert_array_equal(ids[:, 1:], ids[:, :-1] + 1)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_image_and_label_are_scaled_alike(scale):
    # A step edge: left dark and class 0, right bright and class 1.
    label = tf.cast(tf.range(64) >= 32, tf.uint8) * tf.ones([64, 1], tf.uint8)
    image = tf.stack([label * 200] * 3, axis=-1)
    config = TrainConfig(crop_height=32, crop_width=32, min_scale=scale, max_scale=scale)
    for i in range(5):
        got, ids = random_scaled_crop(image, label, config, tf.constant([i, 0]))
        np.testing.assert_array_equal(got[..., 0] > 100, ids == 1)


def test_scales_are_drawn_from_the_steps():
    config = TrainConfig()
    drawn = {float(random_scale(config, tf.constant([0, i]))) for i in range(100)}
    assert drawn == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}
    free = TrainConfig(scale_step=0.0)
    values = [float(random_scale(free, tf.constant([0, i]))) for i in range(50)]
    assert len(set(values)) == 50
    assert 0.5 <= min(values) < 0.7 < 1.8 < max(values) <= 2


def test_flip_mirrors_both_or_neither():
    image, label = coded_pair()
    seen = set()
    for i in range(20):
        flipped, ids = random_flip(image, label, tf.constant([i, 0]))
        np.testing.assert_array_equal(flipped[..., 0], ids)
        mirrored = bool(ids[0, 0] == label[0, -1])
        np.testing.assert_array_equal(ids, label[:, ::-1] if mirrored else label)
        seen.add(mirrored)
    assert seen == {True, False}


def test_color_jitter_stays_within_its_strength():
    grey = tf.fill([4, 4, 3], tf.constant(100, tf.uint8))
    values = [int(color_jitter(grey, 0.25, tf.constant([i, 0]))[0, 0, 0]) for i in range(50)]
    assert 75 <= min(values) < 85 < 115 < max(values) <= 125
    np.testing.assert_array_equal(color_jitter(grey, 0.0, tf.constant([1, 0])), grey)


def test_augment_is_a_function_of_its_seed():
    image, label = coded_pair(60, 80)
    config = TrainConfig(crop_height=33, crop_width=29)

    def make(seed):
        return augment(image, label, config, seed)

    first, again = make(tf.constant([5, 6])), in_a_graph(make, tf.constant([5, 6]))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].shape == (33, 29, 3)
    assert first[1].shape == (33, 29)
    assert np.any(first[0] != make(tf.constant([5, 7]))[0])
