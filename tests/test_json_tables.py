"""Hand-written JSON: errors name the file, the place and the expected type."""

import codecs
import json

import pytest

from mapseg.data.manifest import MANIFEST_NAME, read_manifest
from mapseg.json_files import read_json
from mapseg.labels import LabelClass, LabelSet, make_label_set, read_class_table
from mapseg.stored_json import with_sha256

ROAD = {"name": "road", "color": [1, 2, 3]}
TABLE = tuple(LabelClass(i, name, (i, i, i)) for i, name in enumerate(("road", "curb", "sky")))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "own.json"


def write(path, raw):
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"evaluate": "false"}, 'evaluate must be true or false, without quotes; got "false"'),
        ({"evaluate": 0}, "evaluate must be true or false, without quotes; got 0"),
        ({"evaluate": None}, "evaluate must be true or false, without quotes; got null"),
        ({"id": "1"}, 'id must be a whole number in 0-255; got "1"'),
        ({"id": 1.0}, "id must be a whole number in 0-255; got 1.0"),
        ({"id": True}, "id must be a whole number in 0-255; got true"),
        ({"id": -1}, "id must be a whole number in 0-255; got -1"),
        ({"id": 256}, "id must be a whole number in 0-255; got 256"),
        ({"color": "red"}, 'color must be [r, g, b], three whole numbers in 0-255; got "red"'),
        ({"color": "123"}, 'color must be [r, g, b], three whole numbers in 0-255; got "123"'),
        ({"color": [1, 2]}, "color must be [r, g, b], three whole numbers in 0-255; got [1, 2]"),
        ({"color": [1, 2, 0.5]}, "color must be [r, g, b], three whole numbers in 0-255; got [1"),
        ({"color": ["1", 2, 3]}, "color must be [r, g, b], three whole numbers in 0-255; got ["),
        ({"name": 5}, "name must be text in quotes; got 5"),
        ({"name": " "}, 'name must be text in quotes; got " "'),
        ({"evalute": False}, "got evalute; did you mean evaluate?"),
        ({"Evaluate": False}, "got Evaluate; did you mean evaluate?"),
    ],
)
def test_a_wrong_type_in_a_class_table_is_named(path, label, message):
    write(path, {"labels": [ROAD, {"name": "sky", "color": [0, 0, 0], **label}]})
    with pytest.raises(ValueError) as caught:
        read_class_table(path)
    assert str(caught.value).startswith(f"{path}: label 1") and message in str(caught.value)


@pytest.mark.parametrize("raw", [[ROAD], "road", 5, {"labels": {}}, {"labels": []}, None])
def test_json_that_is_not_a_class_table_is_refused(path, raw):
    with pytest.raises(ValueError, match=r'own\.json: a class table must be {"labels":'):
        read_class_table(write(path, json.dumps(raw)))


@pytest.mark.parametrize("label", [5, None, "road", [1]])
def test_a_label_that_is_no_object_is_named(path, label):
    with pytest.raises(ValueError, match=r"own\.json: label 1 must be an object"):
        read_class_table(write(path, {"labels": [ROAD, label]}))


def test_other_fields_of_class_tables_are_ignored(path):
    label = {**ROAD, "readable": "Road", "instances": True, "category": "flat"}
    assert read_class_table(write(path, {"labels": [label], "version": 1.2}))[0].name == "road"


def groups(**fields):
    flat = {"name": "flat", "color": [1, 1, 1], "sources": ["road", "curb"]}
    return {"classes": [flat, {"name": "rest", "color": [2, 2, 2], "sources": ["sky"], **fields}]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (groups(sources="sky"), "class 1: sources must be a list of strings"),
        (groups(sources=[5]), "class 1: sources must be a list of strings"),
        (
            groups(source=["sky"]),
            "class 1 must have the fields name, color, sources, evaluate; got",
        ),
        (groups(evaluate="no"), "class 1: evaluate must be true or false"),
        (groups(id=1), "class 1 must have the fields name, color, sources, evaluate; got id"),
        (groups(color=[1, 2, 300]), "class 1: color must be [r, g, b]"),
        ({**groups(), "other": "flat"}, "got other; did you mean others?"),
        ({**groups(), "others": ["flat"]}, "a label set: others must be text in quotes"),
        ({"classes": groups()}, "a label set: classes must be a list of objects"),
        ({"labels": []}, "a label set must have the fields classes, others; got labels"),
        ([], "a label set must be an object"),
    ],
)
def test_a_wrong_type_in_a_label_set_is_named(path, raw, message):
    write(path, raw)
    with pytest.raises(ValueError) as caught:
        make_label_set(TABLE, str(path))
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_a_class_without_sources_is_named_unless_others_names_it(path):
    raw = groups()
    del raw["classes"][1]["sources"]
    with pytest.raises(ValueError, match=r"own\.json: class 1 must have sources"):
        make_label_set(TABLE, str(write(path, raw)))
    labels = make_label_set(TABLE, str(write(path, {**raw, "others": "rest"})))
    assert labels.source_to_train[:4] == (0, 0, 1, 255)


def test_a_byte_order_mark_is_read(path):
    path.write_bytes(
        codecs.BOM_UTF8 + json.dumps({"labels": [{**ROAD, "name": "Straße"}]}).encode()
    )
    assert read_class_table(path)[0].name == "Straße"
    path.write_bytes(codecs.BOM_UTF8 + json.dumps(groups()).encode())
    assert make_label_set(TABLE, str(path)).names == ("flat", "rest")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_are_named_together_with_utf_8(path, encoding):
    path.write_bytes(json.dumps({"labels": [ROAD]}).encode(encoding))
    with pytest.raises(ValueError, match=r"own\.json: must be UTF-8 text; got UTF-16 or UTF-32"):
        read_class_table(path)
    with pytest.raises(ValueError, match=r"own\.json: must be UTF-8 text; got UTF-16 or UTF-32"):
        make_label_set(TABLE, str(path))


def test_latin_1_is_named_with_its_line(path):
    path.write_bytes('{"labels":\n [{"name": "Straße", "color": [1, 2, 3]}]}'.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"own\.json: must be UTF-8 text; got the byte 0xdf in line 2"
    ):
        read_class_table(path)


def test_a_repeated_name_in_an_object_is_refused(path):
    write(path, '{"labels": [{"name": "road", "color": [1, 2, 3], "name": "sky"}]}')
    with pytest.raises(ValueError, match=r'own\.json: must be a JSON file; "name" must occur once'):
        read_json(path)


def test_a_syntax_error_is_named_with_its_place(path):
    write(path, '{"labels":\n [{"name": "road" "color": [1, 2, 3]}]}')
    with pytest.raises(ValueError, match=r"own\.json: must be a JSON file; .*line 2 column 19"):
        read_class_table(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_to_train": [0] * 255}, "x: source_to_train must be 256 train ids below 3 or 255"),
        ({"source_to_train": [0] * 255 + [7]}, "x: source_to_train must be 256 train ids below 3"),
        ({"source_to_train": 5}, "x: must be a label set that mapseg wrote"),
        ({"classes": [{"name": "road"}]}, "x: label 0 must have color"),
    ],
)
def test_a_damaged_stored_label_set_is_named(change, message):
    raw = {**make_label_set(TABLE, "all").to_json(), **change}
    with pytest.raises(ValueError) as caught:
        LabelSet.from_json(raw, "x")
    assert message in str(caught.value)


def damage_shard(raw):
    del raw["splits"]["training"]["shards"][0]["file"]


def damage_split(raw):
    del raw["splits"]["validation"]["sizes"]


def damage_sizes(raw):
    raw["splits"]["training"]["sizes"] = {"6 by 8": 1}


def damage_splits(raw):
    raw["splits"] = 5


def damage_head(raw):
    del raw["skipped"]


def damage_classes(raw):
    raw["labels"][1]["evaluate"] = "false"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_shard, "splits.training must be as mapseg wrote it; got"),
        (damage_split, "splits.validation must be as mapseg wrote it; got no sizes"),
        (damage_sizes, "splits.training must be as mapseg wrote it; got invalid literal"),
        (damage_splits, "its head must be as mapseg wrote it; got"),
        (damage_head, "its head must be as mapseg wrote it; got no skipped"),
        (damage_classes, "label 1: evaluate must be true or false"),
    ],
)
def test_a_damaged_manifest_is_named_with_the_place(records_dir, tmp_path, damage, message):
    """With a new checksum, as an editing tool may write it; else the checksum check fails first."""
    raw = json.loads((records_dir / MANIFEST_NAME).read_text())
    del raw["sha256"]
    damage(raw)
    path = write(tmp_path / MANIFEST_NAME, with_sha256(raw))
    with pytest.raises(ValueError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")
