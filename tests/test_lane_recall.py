"""Recall of hand-drawn lane markings."""

import json

import lane_recall
import numpy as np
from conftest import ROOT

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
        assert (points >= 0).all() and (points < (1242, 375)).all()
        assert min(len(line) for line in polylines) >= 2


def test_lane_markings_are_found_in_all_label_sets():
    table = read_class_table(ROOT / "data_prep" / "vistas_v1.2.json")
    assert lane_recall.lane_ids(make_label_set(table, "lane_marking")) == [1]
    label_set = make_label_set(table, "all")
    (lane,) = lane_recall.lane_ids(label_set)
    assert label_set.names[lane] == "marking--general"
