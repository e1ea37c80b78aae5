import numpy as np
import pytest

from mapseg.config import TrainConfig
from mapseg.data.tiles import Window
from mapseg.data.transforms import (
    augment,
    color_jitter,
    pad,
    random_flip,
    random_scale,
    random_window,
    shrink_of,
)


def coded_pair(height=5, width=7):
    """A pair in which each pixel's colour is its id."""
    label = (np.arange(height * width).reshape(height, width) % 250).astype(np.uint8)
    return np.stack([label] * 3, axis=-1), label


def rng_of(*seed):
    return np.random.default_rng(seed)


def test_windows_reach_every_place_alike():
    drawn = [random_window((6, 5), (4, 4), 1.0, rng_of(i)) for i in range(600)]
    assert {(w.height, w.width) for w in drawn} == {(4, 4)}
    counts = np.zeros((3, 2))
    for window in drawn:
        counts[window.top, window.left] += 1
    assert counts.min() > 60  # of 100 expected
    assert counts.sum() == 600


@pytest.mark.parametrize(
    ("scale", "shrink", "length"), [(2.0, 1, 16), (0.75, 1, 43), (0.5, 2, 64), (0.3, 2, 106)]
)
def test_a_window_is_the_crop_before_it_is_scaled(scale, shrink, length):
    assert shrink_of(scale) == shrink
    for i in range(20):
        window = random_window((301, 400), (32, 32), scale, rng_of(i))
        assert (window.height, window.width) == (length, length)
        assert window.top % shrink == window.left % shrink == 0
        assert window.within((301, 400)) == window


def test_an_image_smaller_than_the_window_lies_at_its_top_left():
    window = random_window((20, 400), (32, 32), 0.5, rng_of(0))
    assert (window.top, window.height) == (0, 64)
    assert window.within((20, 400)) == Window(0, window.left, 20, 64)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("pixel", [(0, 0), (99, 120), (47, 3), (50, 60)])
def test_a_window_holds_the_pixel_it_is_drawn_around(scale, pixel):
    places = set()
    for i in range(40):
        window = random_window((100, 121), (20, 24), scale, rng_of(i), around=pixel)
        assert window.top <= pixel[0] < window.top + window.height
        assert window.left <= pixel[1] < window.left + window.width
        places.add((window.top, window.left))
    assert len(places) > 3 or pixel[0] in (0, 99)


def test_padding_is_at_the_bottom_and_the_right():
    image, label = coded_pair()
    assert pad(image, (5, 7), 9) is image
    padded, ids = pad(image, (6, 9), 9), pad(label, (6, 9), 255)
    assert padded.shape == (6, 9, 3)
    np.testing.assert_array_equal(padded[:5, :7], image)
    assert np.all(padded[5:] == 9)
    assert np.all(padded[:, 7:] == 9)
    np.testing.assert_array_equal(ids[:5, :7], label)
    assert np.all(ids[5:] == 255)
    assert np.all(ids[:, 7:] == 255)


def test_scales_are_drawn_from_the_steps():
    drawn = [random_scale(TrainConfig(), rng_of(i)) for i in range(300)]
    assert set(drawn) == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}
    free = TrainConfig(scale_step=0.0)
    values = [random_scale(free, rng_of(i)) for i in range(50)]
    assert len(set(values)) == 50
    assert 0.5 <= min(values) < 0.7 < 1.8 < max(values) <= 2


def test_flip_mirrors_both_or_neither():
    image, label = coded_pair()
    outcomes = set()
    for i in range(20):
        flipped, ids = random_flip(image, label, rng_of(i))
        np.testing.assert_array_equal(flipped[..., 0], ids)
        mirrored = bool(ids[0, 0] == label[0, -1])
        np.testing.assert_array_equal(ids, label[:, ::-1] if mirrored else label)
        outcomes.add(mirrored)
    assert outcomes == {True, False}


class Fixed:
    """Stands for a generator that gives these numbers."""

    def __init__(self, *numbers):
        self.numbers = np.array(numbers)

    def random(self, _):
        return self.numbers


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.5, 0.5, 0.5), [[100, 50, 20], [10, 60, 200]]),
        ((1.0, 0.5, 0.5), [[150, 75, 30], [15, 90, 255]]),  # half as bright again
        # Greys 61.53 and 61.01, mean 61.27: half the distance to it, or to the pixel's own grey.
        ((0.5, 0.0, 0.5), [[81, 56, 41], [36, 61, 131]]),
        ((0.5, 0.5, 0.0), [[81, 56, 41], [36, 61, 131]]),
    ],
)
def test_color_jitter_by_hand(numbers, expected):
    image = np.array([[[100, 50, 20], [10, 60, 200]]], np.uint8)
    jittered = color_jitter(image, 0.5, Fixed(*numbers))
    # OpenCV rounds the matrix to 1/1024.
    np.testing.assert_allclose(jittered[0].astype(int), expected, atol=1)


def test_color_jitter_stays_within_its_strength():
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = [int(color_jitter(grey, 0.25, rng_of(i))[0, 0, 0]) for i in range(50)]
    assert 75 <= min(values) < 85 < 115 < max(values) <= 125
    np.testing.assert_array_equal(color_jitter(grey, 0.0, rng_of(1)), grey)


def test_augment_is_a_function_of_its_random_numbers():
    image, label = coded_pair(33, 29)
    first, again, other = (augment(image, label, TrainConfig(), rng_of(5, i)) for i in (6, 6, 7))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.any(first[0] != other[0])
    plain = augment(image, label, TrainConfig(flip=False, color_jitter=0.0), rng_of(1))
    np.testing.assert_array_equal(plain[0], image)
