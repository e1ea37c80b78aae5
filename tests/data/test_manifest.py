import json

import pytest
from records_by_hand import write_records

from mapseg.data.manifest import Split, read_manifest, shard_name


def test_the_manifest_is_read_back(tmp_path):
    written = write_records(tmp_path)
    assert read_manifest(tmp_path) == written
    assert written.split("training").samples == 3
    assert json.loads((tmp_path / "manifest.json").read_text())["splits"]["training"]["sizes"] == {
        "4x6": 2,
        "8x4": 1,
    }


def test_long_side_is_the_median_over_samples():
    split = Split("a", (), {}, {(10, 20): 3, (50, 40): 1, (30, 31): 1}, {}, "", "")
    assert split.long_side_px == 20  # of 20 20 20 31 50


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*data_prep.build_records"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (3, "a newer")])
def test_another_format_is_refused(tmp_path, version, age):
    write_records(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('version": 2', f'version": {version}'))
    expected = rf"must be 2; got {version}, of {age} mapseg\. Remedy: convert again into another"
    with pytest.raises(ValueError, match=expected):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("was", "becomes"), [('"samples": 3', '"samples": 4'), ("{", "[{"), ("{", ""), ("road", "rood")]
)
def test_a_damaged_manifest_is_named_with_its_remedy(tmp_path, was, becomes):
    write_records(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(was, becomes, 1))
    remedy = "Remedy: remove the file, and run the command that wrote it .* intact shards are kept"
    with pytest.raises(ValueError, match=rf"manifest\.json: must be .* {remedy}"):
        read_manifest(tmp_path)


def test_the_remedy_for_a_missing_shard_covers_shards_of_other_tools(tmp_path):
    write_records(tmp_path)
    (tmp_path / shard_name("training", 1, 2)).unlink()
    expected = r"data_prep\.build_records as before.* fetch it again.*data_prep\.index_records"
    with pytest.raises(FileNotFoundError, match=rf"00001-of-00002.* is missing\. .*{expected}"):
        read_manifest(tmp_path)


def test_an_unknown_split_names_the_known_ones(tmp_path):
    manifest = write_records(tmp_path)
    with pytest.raises(ValueError, match=r"training; got val\. Remedy: "):
        manifest.split("val")
    with pytest.raises(ValueError, match=r"got testing \(testing was skipped: no labels\)"):
        manifest.split("testing")
