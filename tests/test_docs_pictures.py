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


def write_maps(folder, last):
    folder.mkdir()
    for i in range(2):
        Image.new("P", (8, 8)).save(folder / f"{i}.png")
    if last == "cut":
        noise = np.random.default_rng(0).integers(0, 256, [80, 80], np.uint8)
        write_png(folder / "2.png", noise, np.zeros([256, 3], np.uint8))
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:5000])
    elif last:
        Image.new(last, (8, 8)).save(folder / "2.png")


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        ("", "ids: must contain 3 id maps, *.png; got 2"),
        ("RGB", "2.png: must be an id map of infer_main.py; got RGB"),
        ("cut", "2.png: must be an id map of infer_main.py; "),
    ],
)
def test_a_folder_without_three_id_maps_is_refused(tmp_path, last, problem):
    write_maps(tmp_path / "ids", last)
    with pytest.raises(SystemExit) as caught:
        stack_maps.main(["stack_maps.py", str(tmp_path / "ids"), str(tmp_path / "stacked.png")])
    assert problem in str(caught.value)
    assert not (tmp_path / "stacked.png").exists()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["ids", "stacked.jpg"]])
def test_other_arguments_show_the_usage(arguments):
    with pytest.raises(SystemExit, match=r"python docs/stack_maps\.py OUT_DIR/ids PICTURE\.png"):
        stack_maps.main(["stack_maps.py", *arguments])
