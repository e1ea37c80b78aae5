"""docs/stack_maps.py makes the colour maps of docs/results.md."""

import numpy as np
import pytest
import stack_maps
from PIL import Image

from mapseg.pictures import write_png


def test_three_maps_are_stacked_in_their_colours(tmp_path):
    palette = np.zeros([256, 3], np.uint8)
    palette[:4] = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3]]
    for i in range(4):
        write_png(tmp_path / "ids" / f"{i}.png", np.full([100, 414], i, np.uint8), palette)
    path = tmp_path / "stacked.png"
    assert stack_maps.main(["stack_maps.py", str(tmp_path / "ids"), str(path)]) == 0
    stacked = np.asarray(Image.open(path).convert("RGB"))
    assert stacked.shape == (3 * 200 + 2 * 6, 828, 3)
    for i in range(3):
        rows = stacked[206 * i : 206 * i + 200]
        assert (rows == palette[i]).all()
    assert (stacked[200:206] == 255).all()


def test_a_folder_without_maps_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: must contain id maps"):
        stack_maps.main(["stack_maps.py", str(tmp_path), "stacked.png"])
