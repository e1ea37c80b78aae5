"""Outputs in the classes of a mapping, and files with label ids."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from frames_by_hand import (
    LABEL_SET,
    files_in,
    read_ids,
    read_rows,
    run,
    segment,
    write_image,
)
from PIL import Image

import infer_main
from mapseg.inference.infer import Counts
from mapseg.inference.output_classes import output_classes
from mapseg.inference.reading import read_image
from mapseg.labels import VOID, LabelClass, make_label_set
from mapseg.mapping import read_mapping

TARGETS = [
    {"name": "sky", "color": [70, 130, 180], "id": 23},
    {"name": "paint", "color": [250, 250, 0], "id": 200},
    {"name": "road", "color": [128, 64, 128], "id": 7},
]
PAINT, ROAD = 1, 2  # of these


def write_mapping(path, void_id=0, **target_of):
    lines = [{"source": s, "target": t, "reason": "a test"} for s, t in target_of.items()]
    raw = {"void_id": void_id, "targets": TARGETS, "lines": lines}
    path.write_text(json.dumps(raw))
    return str(path)


@pytest.fixture
def mapping(tmp_path):
    """Maps the marking of `LABEL_SET`; the road has no target."""
    return write_mapping(
        tmp_path / "own.json", void_id=4, **{"road, dark": None, "marking": "paint"}
    )


def never(image):
    raise AssertionError("must not be called")


def without_ms(rows):
    return [{name: value for name, value in row.items() if name != "ms"} for row in rows]


def palette_of(path):
    with Image.open(path) as picture:
        return np.reshape(picture.getpalette(), [-1, 3]).tolist()


def test_every_output_is_in_the_target_classes(tmp_path, mapping):
    write_image(tmp_path / "in" / "1.png", size=(40, 100), bright=30)
    out_dir = tmp_path / "out"
    run(tmp_path / "in", out_dir, mapping=mapping, outputs="ids,overlay,panel")
    ids = read_ids(out_dir / "ids" / "1.png")
    np.testing.assert_array_equal(ids, [[PAINT] * 30 + [VOID] * 70] * 40)
    palette = palette_of(out_dir / "ids" / "1.png")
    assert palette[PAINT] == [250, 250, 0] and palette[VOID] == [0, 0, 0]
    tinted = read_image(out_dir / "overlay" / "1.jpg").astype(int)
    assert np.abs(tinted[:, 40:] - 40).max() <= 3  # as in the frame
    assert np.abs(tinted[:, :20] - [250, 250, 125]).max() <= 6
    (row,) = read_rows(out_dir)
    shares = {name: float(value) for name, value in row.items() if name.startswith("share:")}
    assert shares == {"share:sky": 0, "share:paint": 0.3, "share:road": 0}
    panel = read_image(out_dir / "panel" / "1.jpg").astype(int)
    assert (np.abs(panel - (250, 250, 0)).max(-1) < 12).any()
    assert not (np.abs(panel - (128, 64, 128)).max(-1) < 12).any()
    run(tmp_path / "in", tmp_path / "other", outputs="ids")
    legends = [(d / "legend.png").read_bytes() for d in (out_dir, tmp_path / "other")]
    assert legends[0] != legends[1]


def test_classes_to_draw_are_targets(tmp_path, mapping):
    write_image(tmp_path / "in" / "1.png", size=(40, 100), bright=30)
    run(tmp_path / "in", tmp_path / "out", mapping=mapping, classes="paint", outputs="overlay")
    tinted = read_image(tmp_path / "out" / "overlay" / "1.jpg").astype(int)
    assert np.abs(tinted[:, 40:] - 20).max() <= 3  # dimmed
    with pytest.raises(ValueError, match=r"names of this label set \(sky, paint, road\); got mark"):
        run(tmp_path / "in", tmp_path / "other", mapping=mapping, classes="marking")


def test_label_ids_change_only_the_ids_in_files(tmp_path, mapping):
    for i in range(3):
        write_image(tmp_path / "in" / f"{i}.png", size=(40, 100), bright=30 * i)
    asked = {"mapping": mapping, "outputs": "ids,overlay,panel"}
    run(tmp_path / "in", tmp_path / "train", **asked)
    run(tmp_path / "in", tmp_path / "label", ids="label", **asked)
    ids = read_ids(tmp_path / "label" / "ids" / "1.png")
    np.testing.assert_array_equal(ids, [[200] * 30 + [4] * 70] * 40)
    palette = palette_of(tmp_path / "label" / "ids" / "1.png")
    assert [palette[i] for i in (23, 200, 7, 4)] == [[70, 130, 180], [250, 250, 0]] + [
        [128, 64, 128],
        [0, 0, 0],
    ]
    pictures = [name for name in files_in(tmp_path / "train") if name.endswith("jpg")]
    assert len(pictures) == 6
    for name in [*pictures, "legend.png"]:
        assert (tmp_path / "train" / name).read_bytes() == (tmp_path / "label" / name).read_bytes()
    rows = [without_ms(read_rows(tmp_path / name)) for name in ("train", "label")]
    assert rows[0] == rows[1]


def test_the_first_label_ids_are_reported(mapping):
    mapped = output_classes(LABEL_SET, read_mapping(mapping), "label")
    assert mapped.file_ids_line() == "label ids in ids/*.png: 23 sky, 200 paint, 7 road"
    table = [LabelClass(i, f"c{i}", (i, i, i)) for i in range(4)]
    line = output_classes(make_label_set(table, "all"), ids="label").file_ids_line()
    assert line.endswith(": 0 c0, 1 c1, 2 c2, ...; these are also the train ids")
    assert output_classes(LABEL_SET).file_ids_line() == ""


def test_without_a_mapping_label_ids_are_the_source_ids(tmp_path):
    table = [LabelClass(7, "road", (128, 64, 128)), LabelClass(23, "sky", (70, 130, 180))]
    label_set = make_label_set(table, "all")
    write_image(tmp_path / "in" / "1.png", bright=3)
    run(tmp_path / "in", tmp_path / "out", label_set=label_set, ids="label")
    ids = read_ids(tmp_path / "out" / "ids" / "1.png")
    np.testing.assert_array_equal(ids, [[23] * 3 + [7] * 7] * 6)
    palette = palette_of(tmp_path / "out" / "ids" / "1.png")
    assert palette[7] == [128, 64, 128] and palette[23] == [70, 130, 180]


def test_classes_without_a_single_source_id_have_no_label_id(tmp_path):
    table = [LabelClass(i, name, (i, i, i)) for i, name in enumerate(["asphalt", "gravel", "sky"])]
    groups = [
        {"name": "ground", "color": [0, 0, 1], "sources": ["asphalt", "gravel"]},
        {"name": "air", "color": [0, 0, 2], "sources": ["sky"]},
    ]
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"classes": groups}))
    with pytest.raises(
        ValueError,
        match=r"one source id each; got ground of .*, which has \[0, 1\]\. Remedy: --ids",
    ):
        output_classes(make_label_set(table, str(path)), ids="label")
    groups[0]["sources"] = []
    path.write_text(json.dumps({"classes": groups}))
    with pytest.raises(ValueError, match=r"got ground of .*, which has none\. Remedy"):
        output_classes(make_label_set(table, str(path)), ids="label")


@pytest.mark.parametrize("mapped", [False, True])
def test_label_ids_are_read_back_as_the_classes(mapping, mapped):
    classes = output_classes(LABEL_SET, read_mapping(mapping) if mapped else None, "label")
    ids = np.array([[0, 1, 2, VOID]] if mapped else [[0, 1]], np.uint8)
    written = classes.to_file(ids)
    assert written.tolist() == ([[23, 200, 7, 4]] if mapped else [[0, 1]])
    read = classes.from_file(written)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, ids)
    with pytest.raises(ValueError, match=r"ids must be \[.*\]; got \[5, 6\]"):
        classes.from_file(np.array([[0, 6, 5]], np.uint8) if not mapped else np.uint8([[4, 6, 5]]))


@pytest.mark.parametrize("ids", ["train", "label"])
def test_a_video_of_stored_ids_is_that_of_a_single_call(tmp_path, mapping, ids):
    for i in range(4):
        write_image(tmp_path / "in" / f"{i}.png", size=(32, 64), bright=10 * i)
    asked = {"mapping": mapping, "ids": ids}
    run(tmp_path / "in", tmp_path / "one", outputs="ids,video", **asked)
    run(tmp_path / "in", tmp_path / "two", outputs="ids", **asked)
    counts = run(tmp_path / "in", tmp_path / "two", never, outputs="ids,video", **asked)
    assert counts == Counts(0, 0, 4)
    films = []
    for name in ("one", "two"):
        video = cv2.VideoCapture(str(tmp_path / name / "video" / "in.mp4"))
        films.append(np.array([picture for _, picture in iter(video.read, (False, None))]))
    assert len(films[0]) == 4
    np.testing.assert_array_equal(*films)


def test_stored_ids_of_no_class_are_computed_again(tmp_path, mapping):
    write_image(tmp_path / "in" / "1.png", size=(32, 64), bright=10)
    asked = {"mapping": mapping, "ids": "label"}
    run(tmp_path / "in", tmp_path / "out", outputs="ids", **asked)
    path = tmp_path / "out" / "ids" / "1.png"
    expected = read_ids(path)
    picture = Image.fromarray(np.where(expected == 200, 1, expected).astype(np.uint8))
    picture.putpalette([0] * 768)
    picture.save(path)
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids,video", **asked) == Counts(1, 0, 0)
    np.testing.assert_array_equal(read_ids(path), expected)


def test_confidence_and_scale_stay(tmp_path, mapping):
    write_image(tmp_path / "in" / "1.png")
    run(
        tmp_path / "in",
        tmp_path / "out",
        lambda i: segment(i)._replace(scale=0.25),
        mapping=mapping,
    )
    (row,) = read_rows(tmp_path / "out")
    assert (row["mean_confidence"], row["scale"]) == ("0.7500", "0.25")


# With a run


@pytest.fixture
def infer(run_dir, records_dir, capsys):
    """Calls infer_main.py on the training images; returns its exit code and errors."""
    images = records_dir.parent / "vistas" / "training" / "images"

    def call(out_dir, *flags):
        arguments = [f"--run_dir={run_dir}", f"--frames={images}", f"--out_dir={out_dir}", *flags]
        code = infer_main.main(["infer_main.py", *arguments])
        return code, capsys.readouterr().err

    return call


TINY_TARGETS = {"flat--road": "road", "marking--general": None, "nature--sky": "sky"}


def stored_ids(out_dir):
    return np.stack([read_ids(path) for path in sorted((out_dir / "ids").glob("*.png"))])


def test_a_run_infers_exactly_the_mapped_ids(tmp_path, infer):
    own = write_mapping(tmp_path / "own.json", **TINY_TARGETS)
    assert infer(tmp_path / "plain") == (0, "")
    assert infer(tmp_path / "mapped", f"--mapping={own}") == (0, "")
    assert infer(tmp_path / "labels", f"--mapping={own}", "--ids=label") == (0, "")
    plain = stored_ids(tmp_path / "plain")
    assert plain.shape == (6, 60, 80) and len(np.unique(plain)) > 1
    expected = np.array([ROAD, VOID, 0], np.uint8)[plain]
    np.testing.assert_array_equal(stored_ids(tmp_path / "mapped"), expected)
    label_ids = np.array([7, 0, 23], np.uint8)[plain]
    np.testing.assert_array_equal(stored_ids(tmp_path / "labels"), label_ids)


def test_an_output_folder_keeps_its_mapping_and_kind_of_ids(tmp_path, infer):
    own = write_mapping(tmp_path / "own.json", **TINY_TARGETS)
    other = write_mapping(tmp_path / "other.json", **TINY_TARGETS | {"nature--sky": "road"})
    out_dir = tmp_path / "out"
    assert infer(out_dir, f"--mapping={own}")[0] == 0
    before = {path: (out_dir / path).read_bytes() for path in files_in(out_dir)}
    for flags in ([], [f"--mapping={other}"], [f"--mapping={own}", "--ids=label"]):
        code, error = infer(out_dir, *flags)
        assert code == 1
        assert f"{out_dir}: must hold results of the same weights and options" in error
        assert "Remedy: use another --out_dir" in error
    assert before == {path: (out_dir / path).read_bytes() for path in files_in(out_dir)}
    moved = Path(own).rename(tmp_path / "moved.json")  # the content counts
    assert infer(out_dir, f"--mapping={moved}") == (0, "")


def test_bad_mappings_are_refused_before_anything_is_written(tmp_path, infer, monkeypatch):
    from mapseg.inference import predictor

    monkeypatch.setattr(predictor, "load_predictor", never)
    partial = write_mapping(tmp_path / "own.json", **{"flat--road": "road"})
    for flags, message in (
        (
            ["--mapping=vistas"],
            "mapping must be vistas_to_cityscapes19 or a .json file; got vistas",
        ),
        (["--mapping=no.json"], "no.json: no such file"),
        ([f"--mapping={partial}"], "none for marking--general, nature--sky. Remedy"),
        (["--ids=source"], "ids must be one of train, label; got source"),
    ):
        code, error = infer(tmp_path / "out", *flags)
        assert code == 1 and message in error
    assert not (tmp_path / "out").exists()
