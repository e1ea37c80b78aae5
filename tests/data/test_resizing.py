import json

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.build_records import main as convert
from mapseg import charts
from mapseg.config import TrainConfig
from mapseg.data.crops import make_crop
from mapseg.data.manifest import read_manifest
from mapseg.data.resizing import resize_image, resize_label, resize_pair
from mapseg.data.samples import parse_sample
from mapseg.data.shards import index_split, read_record


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0, 1.25, 2.0])
def test_image_and_label_are_resized_alike(scale):
    # A step edge in the middle: left dark and class 0, right bright and class 1.
    label = np.repeat(np.arange(64) >= 32, 64).reshape(64, 64).T.astype(np.uint8)
    image = np.stack([label * 200] * 3, axis=-1)
    side = round(64 * scale)
    got, ids = resize_pair(image, label, (side, side))
    np.testing.assert_array_equal(got[..., 0] > 100, ids == 1)
    half, ids = resize_pair(image[::2, ::2], label, (side, side))
    np.testing.assert_array_equal(half[..., 0] > 100, ids == 1)


def test_an_image_is_reduced_by_area():
    image = np.array([[0, 100, 10, 10], [100, 200, 10, 10]], np.uint8)
    np.testing.assert_array_equal(resize_image(image, (1, 2)), [[100, 10]])


def test_an_id_is_that_of_the_nearest_centre():
    label = np.arange(5, dtype=np.uint8)[np.newaxis].repeat(5, 0)
    _, ids = resize_pair(np.zeros((3, 3, 3), np.uint8), label, (3, 3))
    assert ids[0].tolist() == [0, 2, 4]  # centres at 0.83, 2.5, 4.17 of pixels 1 wide


def test_a_label_is_reduced_to_the_ids_under_the_pixel_centres():
    label = np.array([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17]], np.uint8)
    np.testing.assert_array_equal(resize_label(label, (1, 2)), [[7, 10]])
    np.testing.assert_array_equal(resize_label(label, (3, 4))[0], [0, 2, 3, 5])
    np.testing.assert_array_equal(resize_label(label, (6, 6))[::2], label)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (2, 1, [1]),  # its centre lies between both pixels
        (8, 5, [0, 2, 4, 5, 7]),  # 0.8, 2.4, 4, 5.6, 7.2
        (4, 10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # 1 and 3 are ties
        (9, 3, [1, 4, 7]),
    ],
)
def test_at_a_tie_the_later_pixel_is_taken(old, new, expected, axis):
    label, size = np.arange(old, dtype=np.uint8)[np.newaxis], (1, new)
    if axis == 0:
        label, size = label.T, (new, 1)
    assert resize_label(label, size).ravel().tolist() == expected


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Converts an image and a label of 8x6 pixels with unique ids; returns label and sample."""
    monkeypatch.setattr(charts, "plot_audit", lambda *_: _[-1].write_bytes(b"picture"))
    label = np.random.default_rng(0).permutation(48).astype(np.uint8).reshape(8, 6)
    table = {"labels": [{"name": f"c{i}", "color": [i, i, i]} for i in range(48)]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    for kind, pixels in (("image", np.zeros((8, 6, 3), np.uint8)), ("label", label)):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "k.png")

    def run(*options):
        folders = [f"--{kind}_dir={tmp_path / kind}" for kind in ("image", "label")]
        more = [f"--classes={tmp_path / 'classes.json'}", "--split=a", "--workers=1", *options]
        assert convert(["", *folders, *more, f"--records_dir={tmp_path / 'r'}"]) == 0
        return label, parse_sample(read_record(index_split(read_manifest(tmp_path / "r"), "a"), 0))

    return run


def test_conversion_resizes_labels_by_the_common_rule(stored):
    label, sample = stored("--resize_to=5x4")
    assert sample.size == (5, 4)
    np.testing.assert_array_equal(sample.whole_label, resize_label(label, (5, 4)))


def test_training_resizes_labels_by_the_common_rule(stored):
    label, sample = stored()
    # 5 / 0.625 = 8 and 4 / 0.625 = 6.4 pixels: the window of the crop is the whole sample.
    config = TrainConfig(
        crop_height=5, crop_width=4, min_scale=0.625, max_scale=0.625, flip=False, color_jitter=0.0
    )
    table = np.arange(256, dtype=np.uint8)
    _, ids = make_crop(sample, table, config, np.random.default_rng(0))
    np.testing.assert_array_equal(ids, resize_label(label, (5, 4)))
    assert np.any(ids != cv2.resize(label, (4, 5), interpolation=cv2.INTER_NEAREST))
