"""An export must give the predictor's ids, nearly so with rounded weights, and several classes."""

import numpy as np
import pytest

from mapseg.inference.export.check import Expected, check
from mapseg.inference.export.formats import LITERT, LITERT_INT8

IMAGE = np.zeros([4, 5, 3], np.uint8)


def ids_with(zeros):
    """A batch [1, 4, 5] that starts with so many zeros; the others are 1."""
    return (np.arange(20) >= zeros).astype(np.uint8).reshape(1, 4, 5)


@pytest.mark.parametrize(
    ("form", "zeros", "refusal"),
    [
        (LITERT, 14, r"99.9% of the ids of format litert .*; got 95.000%, and 2.* report it"),
        (LITERT_INT8, 4, r"50.0% of the ids of format litert_int8 .*; got 45.000%, and 2"),
        # Three quarters of the ids are equal, but all are 0.
        (LITERT_INT8, 20, r"more than one class; got 75.000%, and 1.*rounding to 8 bits"),
    ],
)
def test_an_export_is_refused(form, zeros, refusal):
    with pytest.raises(ValueError, match=refusal):
        check(form, lambda images: ids_with(zeros), [Expected(IMAGE, ids_with(15)[0])])


def test_the_share_of_equal_ids_is_returned():
    expected = [Expected(IMAGE, ids_with(15)[0])] * 2
    assert check(LITERT, lambda images: ids_with(15), expected) == 1
    assert check(LITERT_INT8, lambda images: ids_with(8), expected) == 13 / 20
