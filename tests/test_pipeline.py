import itertools

import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.labels import VOID
from mapseg.pipeline import sample_order, train_batches


def config(**options):
    return TrainConfig(**{"crop_height": 33, "crop_width": 41, "batch_size": 2, **options})


def batches(records_dir, count, start_step=0, **options):
    stream = train_batches(records_dir, config(**options), start_step).as_numpy_iterator()
    return list(itertools.islice(stream, count))


@pytest.mark.addons
def test_batches_have_the_promised_shapes_and_ids(records_dir):
    for image, label in batches(records_dir, 3):
        assert image.shape == (2, 33, 41, 3)
        assert label.shape == (2, 33, 41)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= {0, 1, 2, VOID}


def test_a_stream_that_starts_late_is_the_same_stream(records_dir):
    whole, late = batches(records_dir, 10), batches(records_dir, 4, start_step=6)
    for (image, label), (late_image, late_label) in zip(whole[6:], late, strict=True):
        np.testing.assert_array_equal(image, late_image)
        np.testing.assert_array_equal(label, late_label)


def test_the_seed_and_the_step_change_the_batch(records_dir):
    first, second = batches(records_dir, 2)
    (other,) = batches(records_dir, 1, seed=2)
    assert np.any(first[0] != second[0])
    assert np.any(first[0] != other[0])


def test_every_epoch_is_another_permutation_of_all_samples():
    def epoch(number, seed=1):
        first = 7 * number
        return [int(sample_order(seed, tf.constant(first + i, tf.int64), 7)) for i in range(7)]

    epochs = [epoch(n) for n in range(4)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1
    assert epoch(0, seed=2) != epoch(0, seed=1) or epoch(1, seed=2) != epoch(1, seed=1)


def test_labels_follow_the_label_set(records_dir):
    for _, label in batches(records_dir, 3, label_set="lane_marking"):
        assert set(np.unique(label)) <= {0, 1, VOID}


def test_what_is_not_there_is_named(records_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="build_records"):
        train_batches(tmp_path, config())
    with pytest.raises(ValueError, match="holidays"):
        train_batches(records_dir, config(train_split="holidays"))
