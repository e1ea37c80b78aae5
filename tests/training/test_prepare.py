import dataclasses

import pytest
from conftest import TINY

from mapseg.data.manifest import read_manifest
from mapseg.training import loop as train
from mapseg.training.prepare import begin_run


def quiet(_):
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turbo": True}, "turbo"),
        ({"train_split": "holidays"}, "holidays"),
        ({"label_set": "all_66"}, "all_66"),
        ({"init_from": "nowhere"}, "nowhere"),
        ({"encoder_weights": "nowhere.h5"}, "nowhere.h5"),
    ],
)
def test_a_run_that_fails_to_start_leaves_no_files_behind(records_dir, tmp_path, options, message):
    run_dir, manifest = tmp_path / "run", read_manifest(records_dir)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run = begin_run(run_dir, manifest, {**TINY, **options})
        train.train(run, manifest, quiet)
    assert not (run_dir / "config.json").exists()
    run = begin_run(run_dir, manifest, TINY)  # and the folder can still be used
    assert dataclasses.is_dataclass(run)


def test_a_folder_with_other_files_is_refused(records_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        begin_run(tmp_path, read_manifest(records_dir), TINY)
