import numpy as np
import pytest
from PIL import Image

from mapseg import pictures
from mapseg.labels import VOID, LabelClass, LabelSet

COLORS = [(128, 64, 128), (255, 255, 255), (0, 200, 0), (200, 0, 0)]
NAMES = ["road", "marking", "grass", "car"]


@pytest.fixture
def label_set():
    classes = tuple(
        LabelClass(i, name, color)
        for i, (name, color) in enumerate(zip(NAMES, COLORS, strict=True))
    )
    return LabelSet("tiny", classes, tuple(range(256)))


def colors_in(picture):
    packed = np.unique(picture.reshape(-1, 3).astype(np.int64) @ (65536, 256, 1))
    return {(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in packed}


def test_colorize_looks_up_each_id_and_void_is_black(label_set):
    ids = np.array([[0, 1, 2], [3, VOID, 0]], np.uint8)
    drawn = pictures.colorize(ids, label_set.palette)
    expected = [[COLORS[0], COLORS[1], COLORS[2]], [COLORS[3], (0, 0, 0), COLORS[0]]]
    np.testing.assert_array_equal(drawn, expected)


def test_overlay_mixes_by_alpha_and_does_not_tint_void(label_set):
    image = np.full((1, 3, 3), 100, np.uint8)
    ids = np.array([[1, 2, VOID]], np.uint8)
    mixed = pictures.overlay(image, ids, label_set.palette, alpha=0.2)
    # 0.8 * 100 + 0.2 * (255, 255, 255) and 0.8 * 100 + 0.2 * (0, 200, 0)
    assert mixed.tolist() == [[[131, 131, 131], [80, 120, 80], [100, 100, 100]]]
    assert image.min() == image.max() == 100  # the frame itself is unchanged


def test_overlay_of_chosen_classes_dims_the_rest(label_set):
    image = np.full((1, 3, 3), 100, np.uint8)
    ids = np.array([[1, 2, VOID]], np.uint8)
    mixed = pictures.overlay(image, ids, label_set.palette, label_set.select(["marking"]))
    assert mixed[0, 1].tolist() == mixed[0, 2].tolist() == [50, 50, 50]
    assert abs(int(mixed[0, 0, 0]) - 177) <= 1  # (100 + 255) / 2


def test_shrink_bounds_the_long_side_and_leaves_small_pictures():
    picture = np.full([30, 200, 3], (10, 20, 30), np.uint8)
    shrunk = pictures.shrink(picture, 100)
    assert shrunk.shape == (15, 100, 3)
    assert (shrunk == (10, 20, 30)).all()
    assert pictures.shrink(picture, 200) is picture
    assert pictures.shrink(picture.transpose(1, 0, 2), 2).shape == (2, 1, 3)


def test_count_ids_equals_bincount():
    ids = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)
    np.testing.assert_array_equal(pictures.count_ids(ids), np.bincount(ids.ravel(), minlength=256))


def test_panel_shows_pictures_and_only_the_classes_present(label_set):
    image = np.full((300, 500, 3), (10, 20, 30), np.uint8)
    guess = np.zeros((300, 500), np.uint8)
    label = np.full((300, 500), 2, np.uint8)
    picture = pictures.panel(image, guess, label_set, label)
    assert picture.dtype == np.uint8
    assert picture.shape[1] >= 3 * 500 and picture.shape[0] > 300
    colors = colors_in(picture)
    assert {(10, 20, 30), COLORS[0], COLORS[2]} <= colors
    assert COLORS[3] not in colors
    third = np.flatnonzero((picture == COLORS[2]).all(-1).sum(0) > 250)
    assert len(third) == 500  # the ground truth, the last of three, at its own size
    assert third.min() > 2 * 500

    without = pictures.panel(image, guess, label_set)
    assert without.shape[1] < picture.shape[1]
    assert COLORS[2] not in colors_in(without)


def test_panel_names_void_and_omits_classes_that_are_not_drawn(label_set):
    image = np.full((400, 500, 3), 90, np.uint8)
    guess = np.full((400, 500), 3, np.uint8)
    guess[:100] = 1
    label = np.zeros_like(guess)
    label[:200] = VOID
    plain = pictures.panel(image, guess, label_set, label)
    label[:200] = 0
    assert plain.shape[0] >= pictures.panel(image, guess, label_set, label).shape[0]
    assert (plain == 0).all(-1).sum() > 200 * 500  # void: the picture and its swatch
    chosen = pictures.panel(image, guess, label_set, drawn=label_set.select(["marking"]))
    assert COLORS[3] not in colors_in(chosen)
    assert (chosen == 0).all(-1).sum() == 300 * 500


@pytest.mark.parametrize("size", [(3456, 4608), (4608, 3456), (375, 1242), (8, 6), (1, 3000)])
def test_panel_fits_frames_of_any_size(size, label_set):
    image = np.zeros((*size, 3), np.uint8)
    ids = np.zeros(size, np.uint8)
    picture = pictures.panel(image, ids, label_set, ids)
    assert 450 < max(picture.shape) < 3.2 * pictures.PICTURE_PX


def test_panel_of_many_classes_has_a_legend_that_fits():
    rng = np.random.default_rng(0)
    classes = tuple(
        LabelClass(
            i, f"construction--structure--number-{i}", tuple(rng.integers(1, 255, 3).tolist())
        )
        for i in range(124)
    )
    label_set = LabelSet("many", classes, tuple(range(256)))
    ids = (np.arange(62 * 200).reshape(62, 200) % 124).astype(np.uint8)
    picture = pictures.panel(np.zeros((62, 200, 3), np.uint8), ids, label_set)
    block = picture[160:]  # the pictures, twice as large as the frame, end before
    assert {c.color for c in classes} <= colors_in(block)  # a swatch for each, none cut off


def test_legend_has_a_swatch_for_each_class(label_set):
    assert set(COLORS) <= colors_in(pictures.legend(label_set))


def test_write_png_keeps_ids_as_indices(tmp_path, label_set):
    ids = np.array([[0, 3, 255], [7, 1, 2]], np.uint8)
    path = tmp_path / "deep" / "er" / "ids.png"
    pictures.write_png(path, ids, label_set.palette)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), ids)
        rgb = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(rgb, pictures.colorize(ids, label_set.palette))


def test_write_png_and_jpg_keep_the_order_of_the_channels(tmp_path):
    image = np.full((32, 32, 3), (200, 30, 60), np.uint8)
    pictures.write_png(tmp_path / "a.png", image)
    pictures.write_jpg(tmp_path / "a.jpg", image)
    with Image.open(tmp_path / "a.png") as png, Image.open(tmp_path / "a.jpg") as jpg:
        np.testing.assert_array_equal(np.asarray(png), image)
        assert np.abs(np.asarray(jpg).astype(int) - image).max() <= 4
