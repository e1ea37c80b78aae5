"""Recall of hand-drawn lane markings."""

import json

import lane_recall
import numpy as np
from conftest import ROOT
from PIL import Image

from mapseg.labels import make_label_set, read_class_table


def test_counts_found_and_nearly_found_pixels_by_hand():
    drawn = lane_recall.draw([[[2, 5], [11, 5]]], (20, 30))
    assert drawn.sum() == 10 and drawn[5, 2:12].all()
    predicted = np.zeros((20, 30), bool)
    predicted[5, 2:6] = True  # four pixels on the line, and two more within 2 px of their end
    predicted[15, 20:25] = True  # a false alarm
    assert lane_recall.count(drawn, predicted).tolist() == [10, 4, 6, 9, 600]
    assert (
        lane_recall.row("a", lane_recall.count(drawn, predicted)) == "| a | 40.0% | 60.0% | 1.5% |"
    )


def test_every_drawn_point_lies_in_its_frame():
    for polylines in json.loads(lane_recall.LINES_PATH.read_text(encoding="utf-8")).values():
        points = np.array([point for line in polylines for point in line])
        assert (points >= 0).all() and (points < lane_recall.FRAME_SIZE[::-1]).all()
        assert min(len(line) for line in polylines) >= 2


def test_frames_of_another_size_are_refused_before_anything_is_written(tmp_path, capsys):
    names = json.loads(lane_recall.LINES_PATH.read_text(encoding="utf-8"))
    sizes = dict.fromkeys(names, (375, 1242))
    *_, last = sizes
    for name, size in {**sizes, last: (376, 1241)}.items():
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / name)
    folders = ["--run_dir=R", f"--frames_dir={tmp_path}", f"--out_dir={tmp_path / 'out'}"]
    assert lane_recall.main(["lane_recall", *folders]) == 1
    message = f"{tmp_path / last}: must have 375 x 1242 pixels (height x width), as lane markings"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert lane_recall.read_frame(tmp_path / min(sizes)).shape == (375, 1242, 3)


def test_a_missing_frame_is_named(tmp_path, capsys):
    first, *others = json.loads(lane_recall.LINES_PATH.read_text(encoding="utf-8"))
    for name in others:
        Image.fromarray(np.zeros((375, 1242, 3), np.uint8)).save(tmp_path / name)
    folders = ["--run_dir=R", f"--frames_dir={tmp_path}", f"--out_dir={tmp_path / 'out'}"]
    assert lane_recall.main(["lane_recall", *folders]) == 1
    assert f"{others[-1]}; {first} missing. Remedy: copy them from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_reported_before_the_table(run_dir, tmp_path, capsys):
    for name in json.loads(lane_recall.LINES_PATH.read_text(encoding="utf-8")):
        Image.fromarray(np.zeros((375, 1242, 3), np.uint8)).save(tmp_path / name)
    folders = [f"--run_dir={run_dir}", f"--frames_dir={tmp_path}", f"--out_dir={tmp_path / 'out'}"]
    assert lane_recall.main(["lane_recall", *folders, "--checkpoint=99"]) == 1
    out, errors = capsys.readouterr()
    assert "|" not in out
    assert "99" in errors
    assert not (tmp_path / "out").exists()


def test_lane_markings_are_found_in_all_label_sets():
    table = read_class_table(ROOT / "data_prep" / "vistas_v1.2.json")
    assert lane_recall.lane_ids(make_label_set(table, "lane_marking")) == [1]
    label_set = make_label_set(table, "all")
    (lane,) = lane_recall.lane_ids(label_set)
    assert label_set.names[lane] == "marking--general"
