import tracemalloc

import numpy as np
import pytest

from mapseg.config import TrainConfig
from mapseg.data.batches import read_samples, train_batches
from mapseg.data.crops import make_crop
from mapseg.data.manifest import read_manifest
from mapseg.data.samples import parse_sample
from mapseg.data.shards import index_split, read_record
from mapseg.data.transforms import random_scale, random_window
from mapseg.labels import VOID, make_label_set


def config(**options):
    return TrainConfig(**{"crop_height": 33, "crop_width": 41, "batch_size": 2, **options})


def plain_config(**options):
    fixed = {"min_scale": 1.0, "max_scale": 1.0, "flip": False, "color_jitter": 0.0}
    return config(**{**fixed, **options})


def test_an_unscaled_crop_is_cut_out_of_the_decoded_sample(records_dir):
    index = index_split(read_manifest(records_dir), "training")
    samples = list(read_samples(records_dir, "training").as_numpy_iterator())
    labels = make_label_set(read_manifest(records_dir).classes, "all")
    for i, (whole, ids, _) in enumerate(samples):
        for turn in range(5):
            rng = np.random.default_rng([i, turn])
            sample = parse_sample(read_record(index, i))
            image, label = make_crop(sample, labels.table, plain_config(), rng)
            again = np.random.default_rng([i, turn])
            scale = random_scale(plain_config(), again)
            window = random_window(ids.shape, (33, 41), scale, again)
            place = np.s_[window.top : window.top + 33, window.left : window.left + 41]
            np.testing.assert_array_equal(image, whole[place])
            np.testing.assert_array_equal(label, ids[place])


def test_a_table_of_other_labels_is_an_error(records_dir):
    sample = parse_sample(read_record(index_split(read_manifest(records_dir), "training"), 0))
    nowhere = np.full(256, VOID, np.uint8)
    message = r"training-0: tile 0 must contain class 1; got none .*verify_records"
    with pytest.raises(ValueError, match=message):
        make_crop(sample, nowhere, config(), np.random.default_rng(0), focus=(0, 1))


def test_crops_beyond_the_image_are_grey_and_void(records_dir):
    train_config = config(crop_height=100, crop_width=100, max_scale=0.5, flip=False)
    image, label = next(train_batches(records_dir, train_config).as_numpy_iterator())
    assert np.all(label[:, 31:] == VOID)
    assert np.all(label[:, :, 41:] == VOID)
    assert np.any(label[:, :28, :38] != VOID)
    assert np.all(image[:, 33:] == 127)


@pytest.mark.parametrize("scale", [0.1, 0.75])
def test_a_crop_larger_than_its_image_takes_no_more_memory(records_dir, scale):
    sample = parse_sample(read_record(index_split(read_manifest(records_dir), "training"), 0))
    train_config = config(
        crop_height=1000, crop_width=1200, min_scale=scale, max_scale=scale, flip=False
    )
    labels = make_label_set(read_manifest(records_dir).classes, "all")
    tracemalloc.start()
    image, label = make_crop(sample, labels.table, train_config, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (1000, 1200, 3)
    assert peak < 4 * 3 * label.size  # bytes: three copies of image and label
    covered = round(60 * scale), round(80 * scale)
    assert np.all(label[covered[0] :] == VOID)
    assert np.all(label[:, covered[1] :] == VOID)
    assert np.any(label[: covered[0], : covered[1]] != VOID)
