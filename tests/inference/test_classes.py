import numpy as np
import pytest
import tensorflow as tf

from mapseg.inference import classes
from mapseg.inference.classes import View, average_classes, classes_between, cut_view

CLASSES = 6


def smooth_logits(batch=2, height=9, width=12):
    """Logits with regions of one class, borders of two, and corners of more."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=[batch, 4, 5, CLASSES])
    return tf.image.resize(coarse, [height, width], "bicubic") * 5


def noise(batch=2, height=9, width=12):
    return tf.constant(
        np.random.default_rng(1).normal(size=[batch, height, width, CLASSES]), tf.float32
    )


def interpolated(logits, rows, columns):
    """Reference interpolation in float64: [B, n, m, C]."""
    values = np.asarray(logits, np.float64)
    for axis, positions in ((1, rows), (2, columns)):
        positions = np.clip(np.asarray(positions, np.float64), 0, values.shape[axis] - 1)
        low = np.minimum(positions.astype(int), values.shape[axis] - 2)
        share = (positions - low).reshape([-1, *[1] * (3 - axis)])
        below, above = values.take(low, axis), values.take(low + 1, axis)
        values = below + (above - below) * share
    return values


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def positions(samples, pixels, first=0.0, step=0.25):
    return np.minimum(first + step * np.arange(pixels), samples).astype(np.float32)


# Pixels per cell: 4 as at scale 1, other integers and fractions, less than one, and clamped.
PLACES = [
    (positions(9, 33), positions(12, 45)),
    (positions(9, 31, 0.25), positions(12, 40, 0.5)),
    (positions(9, 61, -0.43, 0.129), positions(12, 81, -0.43, 0.1371)),
    (positions(9, 5, 0.9, 1.7), positions(12, 6, 0.2, 2.1)),
    (positions(9, 9, 0, 1), positions(12, 12, 0, 1)),
    (positions(9, 1, 3.3), positions(12, 1, 11.9)),
    (positions(9, 40, 5, 0.3), positions(12, 60, 8, 0.3)),
]


@pytest.mark.parametrize("band_values", [1, 2000, 2**24])
@pytest.mark.parametrize("make", [smooth_logits, noise])
@pytest.mark.parametrize("place", range(len(PLACES)))
def test_both_functions_return_the_class_of_the_interpolated_logits(
    place, make, band_values, monkeypatch
):
    monkeypatch.setattr(classes, "_BAND_VALUES", band_values)
    rows, columns = PLACES[place]
    logits = make()
    expected = interpolated(logits, rows, columns)
    view = View(logits, tf.constant(rows), tf.constant(columns))
    between = tf.function(classes_between)(view)
    everywhere, without = (
        tf.function(lambda v, p=p: average_classes([v], probability=p))(view) for p in (True, False)
    )
    for result in (between, everywhere, without):
        np.testing.assert_array_equal(result.ids, expected.argmax(-1))
    assert without.probability.shape[-1] == 0
    probability = softmax(expected).max(-1)
    np.testing.assert_allclose(everywhere.probability, probability, rtol=1e-4)
    samples = softmax(np.asarray(logits, np.float64)).max(-1)
    for result in (between, everywhere, without):
        np.testing.assert_allclose(result.confidence, samples.mean((1, 2)), rtol=1e-4)


@pytest.mark.parametrize(("views", "softmaxes"), [(1, 0), (2, 2)])
def test_only_an_average_needs_a_softmax_of_all_pixels(views, softmaxes):
    def graph(logits):
        rows, columns = (tf.constant(place) for place in PLACES[0])
        return average_classes([View(logits, rows, columns)] * views, probability=False)

    definition = tf.function(graph).get_concrete_function(noise()).graph.as_graph_def()
    nodes = [n for function in definition.library.function for n in function.node_def]
    assert [node.op for node in nodes].count("Softmax") == softmaxes


def test_nothing_is_interpolated_between_samples_that_agree(monkeypatch):
    """The second class never wins between samples that agree on the first."""
    monkeypatch.setattr(tf, "matmul", lambda weights, corners: sizes.append(corners) or weights)
    sizes = []
    logits = tf.one_hot(tf.zeros([1, 5, 7], tf.int32), CLASSES)
    rows, columns = tf.constant(positions(5, 17)), tf.constant(positions(7, 25))
    ids = classes_between(View(logits, rows, columns)).ids
    assert len(sizes[0]) == 0
    assert not ids.numpy().any()


def test_cut_view_keeps_the_logits_of_the_region():
    logits = noise()
    for rows, columns in PLACES:
        whole = classes_between(View(logits, tf.constant(rows), tf.constant(columns)))
        part = cut_view(logits, tf.constant(rows), tf.constant(columns))
        np.testing.assert_array_equal(classes_between(part).ids, whole.ids)
    rows, columns = PLACES[1]
    mirrored = cut_view(logits, tf.constant(rows), tf.constant(columns[::-1].copy()))
    ids = average_classes([mirrored], probability=False).ids[:, :, ::-1]
    np.testing.assert_array_equal(ids, interpolated(logits, rows, columns).argmax(-1))


def test_a_single_sample_sets_the_class_of_all_pixels():
    view = cut_view(noise(height=1, width=1), tf.zeros([3]), tf.zeros([4]))
    ids = classes_between(view).ids.numpy()
    assert ids.shape == (2, 3, 4)
    assert (ids == ids[:, :1, :1]).all()
