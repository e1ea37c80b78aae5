import numpy as np
import pytest

from mapseg.confusion_chart import draw_confusion


@pytest.mark.parametrize("count", [2, 19, 65])
def test_rows_are_shares_and_rows_without_pixels_are_grey(count):
    names = [f"class-{i}" for i in range(count)]
    confusion = np.zeros([count, count], np.int64)
    confusion[0, 0] = 7  # all of few pixels
    picture = draw_confusion(confusion, names)
    dark, grey = (8, 48, 107), (204, 204, 204)  # the end of the colours; no label pixels
    counts = {color: np.all(picture == color, axis=-1).sum() for color in (dark, grey)}
    cell = counts[dark] - _colorbar_pixels(names)
    assert cell > 80
    assert counts[grey] == pytest.approx(cell * count * (count - 1), rel=0.25)
    assert max(picture.shape) < 1500


def _colorbar_pixels(names):
    """The darkest pixels of a chart without any label: those of its colour bar."""
    picture = draw_confusion(np.zeros([len(names)] * 2, np.int64), names)
    return np.all(picture == (8, 48, 107), axis=-1).sum()


def test_a_row_does_not_depend_on_its_number_of_pixels():
    few, many = np.array([[3, 1], [0, 4]]), np.array([[300, 100], [0, 8]])
    pictures = [draw_confusion(matrix, ["a", "b"]) for matrix in (few, many)]
    np.testing.assert_array_equal(*pictures)
    assert (draw_confusion(few.T, ["a", "b"]) != pictures[0]).any()
