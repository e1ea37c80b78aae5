import json

import numpy as np
import pytest
from conftest import ROOT, SHARED

from mapseg.labels import VOID, LabelClass, LabelSet, make_label_set, read_class_table

CONFIG_V1_2 = ROOT / "data_prep" / "vistas_v1.2.json"
CONFIG_V2_0 = SHARED / "data" / "mapillary_config_v2.0.json"


def write_table(path, labels):
    path.write_text(json.dumps({"labels": labels}))
    return path


def some_table():
    names = ["flat--road", "flat--sidewalk", "marking--general", "marking--crosswalk-zebra"]
    table = [LabelClass(i, n, (i, 2 * i, 3 * i)) for i, n in enumerate(names)]
    return [*table, LabelClass(4, "void--unlabeled", (0, 0, 0), evaluate=False)]


def test_all_trains_the_evaluated_classes_of_v1_2():
    labels = make_label_set(read_class_table(CONFIG_V1_2), "all")
    assert len(labels.classes) == 65
    assert labels.table[:65].tolist() == list(range(65))
    assert set(labels.table[65:]) == {VOID}


def test_all_66_trains_unlabeled_but_does_not_score_it():
    labels = make_label_set(read_class_table(CONFIG_V1_2), "all_66")
    assert labels.table[65] == 65
    assert labels.evaluated.tolist() == [True] * 65 + [False]


def test_lane_marking_of_v1_2_is_one_class():
    table = read_class_table(CONFIG_V1_2)
    labels = make_label_set(table, "lane_marking")
    ids = {c.name: labels.table[c.id] for c in table}
    assert [n for n, i in ids.items() if i == 1] == ["marking--general"]
    assert [n for n, i in ids.items() if i == VOID] == ["void--unlabeled"]
    assert ids["marking--crosswalk-zebra"] == 0


@pytest.mark.skipif(not CONFIG_V2_0.is_file(), reason="the v2.0 table is not there")
def test_v2_0_is_matched_by_name():
    table = read_class_table(CONFIG_V2_0)
    assert len(make_label_set(table, "all").classes) == 116
    lane = make_label_set(table, "lane_marking").table
    chosen = {c.name for c in table if lane[c.id] == 1}
    assert {"marking--continuous--solid", "marking-only--discrete--text"} <= chosen
    assert not any("crosswalk-zebra" in n for n in chosen)
    assert len(chosen) == 22
    with pytest.raises(ValueError, match="all_66"):
        make_label_set(table, "all_66")


def test_groups_from_a_file(tmp_path):
    path = tmp_path / "groups.json"
    groups = {
        "classes": [
            {"name": "rest", "color": [0, 0, 0], "sources": []},
            {"name": "paint", "color": [255, 255, 255], "sources": ["marking--*"]},
        ],
        "others": "rest",
    }
    path.write_text(json.dumps(groups))
    labels = make_label_set(some_table(), str(path))
    assert labels.table[:6].tolist() == [0, 0, 1, 1, 0, VOID]
    del groups["others"]
    path.write_text(json.dumps(groups))
    assert make_label_set(some_table(), str(path)).table[:5].tolist() == [VOID, VOID, 1, 1, VOID]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([{"name": "a", "color": [0, 0, 0], "sources": ["nothing-*"]}], "matches none"),
        ([{"name": "a", "color": [0, 0, 0], "sources": ["flat--*"]}] * 2, "name must be unique"),
        (
            [
                {"name": "a", "color": [0, 0, 0], "sources": ["flat--*"]},
                {"name": "b", "color": [0, 0, 0], "sources": ["flat--road"]},
            ],
            "in two",
        ),
        ([{"name": "a", "color": [0, 0, 0], "sources": ["flat--*"]}], "2 to 255 classes"),
        ("road", "must be"),
    ],
)
def test_bad_groups_are_refused_with_the_file(tmp_path, classes, message):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"classes": classes}))
    with pytest.raises(ValueError, match=message) as caught:
        make_label_set(some_table(), str(path))
    assert "groups.json" in str(caught.value)


def test_a_table_may_have_ids(tmp_path):
    labels = [
        {"name": "void", "color": [0, 0, 0], "id": 255, "evaluate": False},
        {"name": "road", "color": [1, 2, 3], "id": 7},
        {"name": "car", "color": [4, 5, 6], "id": 9},
    ]
    table = read_class_table(write_table(tmp_path / "t.json", labels))
    assert [c.id for c in table] == [7, 9, 255]
    label_set = make_label_set(table, "all")
    assert label_set.table[[7, 9, 255]].tolist() == [0, 1, VOID]
    assert label_set.palette[1].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    "labels",
    [
        [],
        [{"name": "road"}],
        [{"name": "road", "color": [1, 2]}],
        [{"name": "road", "color": [1, 2, 300]}],
        [{"name": "a", "color": [0, 0, 0], "id": 256}],
        [{"name": "a", "color": [0, 0, 0], "id": i} for i in (1, 1)],
        ["road"],
    ],
)
def test_bad_tables_are_refused_with_the_file(tmp_path, labels):
    with pytest.raises(ValueError, match=r"t\.json"):
        read_class_table(write_table(tmp_path / "t.json", labels))


def test_a_missing_table_and_one_that_is_not_json(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_class_table(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_class_table(tmp_path / "bad.json")


def test_label_set_survives_json():
    labels = make_label_set(some_table(), "all")
    again = LabelSet.from_json(json.loads(json.dumps(labels.to_json())), "x")
    assert again == labels


def test_select_by_name_and_pattern():
    labels = make_label_set(some_table(), "all")
    assert np.flatnonzero(labels.select(["marking--*", "flat--road"])).tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="bus"):
        labels.select(["bus"])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="label_set must be"):
        make_label_set(some_table(), "everything")
    with pytest.raises(ValueError, match="marking--"):
        make_label_set(some_table()[:2], "lane_marking")
