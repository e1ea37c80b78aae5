import json

import numpy as np
import pytest
from conftest import ROOT, SHARED

from mapseg.labels import VOID, LabelClass, make_label_set, read_class_table
from mapseg.mapping import Line, Mapping, read_mapping, shipped_names

VISTAS = "vistas_to_cityscapes19"
VISTAS_TABLES = [
    ROOT / "data_prep" / "vistas_v1.2.json",
    SHARED / "data" / "mapillary_config_v2.0.json",
]
ROAD = {"name": "road", "color": [128, 64, 128], "id": 7}
SKY = {"name": "sky", "color": [70, 130, 180], "id": 23}
RAW = {
    "void_id": 0,
    "targets": [SKY, ROAD],  # not by id
    "lines": [
        {"source": "flat--road", "target": "road", "reason": "the same"},
        {"source": "marking--general", "target": "road", "reason": "paint on it"},
        {"source": "nature--sky", "target": "sky", "reason": "the same"},
        {"source": "void--unlabeled", "target": None, "reason": "nothing"},
    ],
}


def write(path, **changes):
    path.write_text(json.dumps(RAW | changes))
    return str(path)


@pytest.fixture
def mapping(tmp_path):
    return read_mapping(write(tmp_path / "own.json"))


def test_a_table_worked_by_hand(mapping):
    names = ["nature--sky", "marking--general", "void--unlabeled", "flat--road"]
    table = mapping.table(names)
    assert table.dtype == np.uint8
    assert table.tolist() == [0, 1, VOID, 1] + [VOID] * 252
    # Not all classes must be predicted: one file is for several label sets.
    assert mapping.table(["flat--road"]).tolist() == [1] + [VOID] * 255


def test_targets_are_a_label_set_with_label_ids(mapping):
    label_set = mapping.label_set
    assert label_set.names == ("sky", "road")
    assert (
        label_set.palette[[0, 1, 2, VOID]].tolist()
        == [[70, 130, 180], [128, 64, 128]] + [[0, 0, 0]] * 2
    )
    assert label_set.table[[23, 7]].tolist() == [0, 1]
    assert set(np.delete(label_set.table, [23, 7])) == {VOID}
    assert mapping.label_ids.tolist() == [23, 7] + [0] * 254


def test_uncovered_classes_are_listed_with_a_remedy(mapping):
    with pytest.raises(ValueError) as caught:
        mapping.table(["flat--raod", "nature--sky", "lane marking"])
    message = str(caught.value)
    assert message.startswith(f"{mapping.origin}: lines must cover every predicted class; got none")
    assert "none for flat--raod (did you mean flat--road?), lane marking. Remedy: " in message
    assert message.endswith('{"source": "flat--raod", "target": null, "reason": "why"}')
    with pytest.raises(ValueError, match=r"c0, c1, c2, c3, c4 and 2 more\. Remedy"):
        mapping.table([f"c{i}" for i in range(7)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"void_id": 256}, "a mapping: void_id must be a whole number in 0-255; got 256"),
        ({"void_id": 7}, "void_id must not be the id of a target; got 7, which is road"),
        ({"targets": []}, r"a mapping: targets must be a list of objects"),
        ({"target": []}, r"a mapping must have the fields .*; got target; did you mean targets"),
        ({"targets": [ROAD, {**SKY, "ids": 1}]}, "target 1 must have the fields.*; got ids"),
        ({"targets": [ROAD, {"name": "sky", "color": [1, 2, 3]}]}, "target 1 must have id"),
        ({"targets": [ROAD, {**SKY, "color": "red"}]}, r"target 1: color must be \[r, g, b\]"),
        ({"targets": [ROAD, {**SKY, "id": 7}]}, r"every label's id must be unique; got \[7\]"),
        ({"targets": [ROAD, {**SKY, "name": "road"}]}, r"name must be unique; got \['road'\]"),
        ({"targets": [ROAD], "lines": RAW["lines"][:1]}, "must have 2 to 255 classes; got 1"),
        ({"lines": [{"source": "a", "target": None}]}, "line 0 must have reason, text in quotes"),
        ({"lines": [{"source": "a", "target": 7, "reason": "b"}]}, "line 0: target must be the"),
        ({"lines": [{"source": "a", "target": "raod", "reason": "b"}]}, "line 0: target must be"),
        ({"lines": RAW["lines"] + RAW["lines"][1:2]}, "line 4: .*one line; marking--general has"),
        ({"lines": RAW["lines"] + [7]}, "a mapping: lines must be a list of objects"),
    ],
)
def test_errors_name_the_file_and_the_place(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"own\.json:? .*{message}") as caught:
        read_mapping(write(tmp_path / "own.json", **changes))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: no such file"):
        read_mapping(str(tmp_path / "nothing.json"))
    with pytest.raises(
        ValueError, match=rf"must be {VISTAS} or a \.json file; got vistas_.*did you mean {VISTAS}"
    ):
        read_mapping("vistas_to_cityscapes")


def test_the_digest_is_of_what_changes_results(tmp_path, mapping):
    lines = [dict(line) for line in RAW["lines"]]
    lines[0]["reason"] = "another reason"
    assert read_mapping(write(tmp_path / "b.json", lines=lines[::-1])).digest == mapping.digest
    lines[0]["target"] = None
    changes = [{"lines": lines}, {"void_id": 1}, {"targets": [ROAD, SKY]}]
    changes += [{"targets": [{**SKY, "id": 24}, ROAD]}, {"targets": [{**SKY, "name": "air"}, ROAD]}]
    changes[-1]["lines"] = [line for line in RAW["lines"] if line["target"] != "sky"]
    digests = {read_mapping(write(tmp_path / "b.json", **change)).digest for change in changes}
    assert len(digests | {mapping.digest}) == 6


def test_the_shipped_mappings_are_listed():
    assert shipped_names() == [VISTAS]


@pytest.mark.parametrize("path", VISTAS_TABLES, ids=lambda path: path.stem)
def test_the_mapping_of_vistas_covers_each_version_and_reaches_every_target(path):
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    names = [c.name for c in read_class_table(path)]
    table = read_mapping(VISTAS).table(names)
    assert {*table[: len(names)].tolist()} == {*range(19), VOID}


def test_the_mapping_of_vistas_has_no_other_lines():
    if not all(path.is_file() for path in VISTAS_TABLES):
        pytest.skip("the v2.0 table is not there")
    names = {c.name for path in VISTAS_TABLES for c in read_class_table(path)}
    assert {line.source for line in read_mapping(VISTAS).lines} == names


def test_the_targets_of_vistas_are_the_scored_classes_of_cityscapes():
    table = read_class_table(ROOT / "data_prep" / "cityscapes_34.json")
    mapping = read_mapping(VISTAS)
    assert mapping.targets == tuple(c for c in table if c.evaluate)
    (void,) = [c for c in table if c.id == mapping.void_id]
    assert (void.name, void.evaluate) == ("unlabeled", False)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("construction--barrier--curb", "sidewalk"),
        ("marking--crosswalk-zebra", "road"),
        ("marking--discrete--crosswalk-zebra", "road"),
        ("object--vehicle--on-rails", "train"),
        ("object--traffic-sign--back", None),
        ("object--traffic-sign--front", "traffic sign"),
        ("human--rider--other-rider", "rider"),
        ("construction--flat--parking", None),
        ("nature--sand", "terrain"),
        ("object--vehicle--caravan", None),
    ],
)
def test_lines_follow_the_definitions_of_cityscapes(source, target):
    assert {line.source: line.target for line in read_mapping(VISTAS).lines}[source] == target


def test_a_mapping_can_be_made_in_python():
    targets = read_mapping(VISTAS).targets[:2]
    made = Mapping("mine", targets, (Line("asphalt", "road", "it is driven on"),), void_id=0)
    assert made.table(["asphalt"])[0] == 0


def test_a_translation_to_the_ids_of_other_labels(mapping):
    table = [LabelClass(i, n, (i, i, i)) for i, n in enumerate(["car", "road", "tree", "sky"])]
    labels = make_label_set(table, "all")
    names = ["nature--sky", "marking--general", "void--unlabeled", "flat--road"]
    translation = mapping.translation(names, labels)
    assert translation.tolist() == [3, 1, VOID, 1] + [VOID] * 252
    without_sky = make_label_set(table[:3], "all")
    with pytest.raises(ValueError, match=r"targets must be classes of the labels.*no sky\. Remedy"):
        mapping.translation(names, without_sky)
    assert mapping.translation(names[1:], without_sky)[:3].tolist() == [1, VOID, 1]


def test_the_shipped_mapping_reaches_the_classes_of_cityscapes_labels():
    labels = make_label_set(read_class_table(ROOT / "data_prep" / "cityscapes_34.json"), "all")
    vistas = make_label_set(read_class_table(VISTAS_TABLES[0]), "all")
    translation = read_mapping(VISTAS).translation(vistas.names, labels)
    assert {*np.unique(translation)} == {*range(19), VOID}
    road = vistas.names.index("construction--flat--road")
    assert labels.names[translation[road]] == "road"


def test_a_mapping_without_any_target_is_refused(mapping):
    with pytest.raises(ValueError, match=r"class must have a target.*Remedy"):
        mapping.table(["void--unlabeled"])
