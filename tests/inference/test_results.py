import json

import pytest
from frames_by_hand import (
    files_in,
    run,
    write_image,
)


def test_results_of_another_run_are_not_mixed(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    run(tmp_path / "in", tmp_path / "out")
    before = files_in(tmp_path / "out")
    mark = json.loads((tmp_path / "out" / "inference.json").read_text())
    assert (mark["format_version"], mark["fingerprint"]) == (2, "run 1, step 7")
    with pytest.raises(ValueError, match=r"options, run 2; got run 1, step 7.*another --out_dir"):
        run(tmp_path / "in", tmp_path / "out", fingerprint="run 2")
    assert files_in(tmp_path / "out") == before
    (tmp_path / "foreign" / "ids").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"without an inference\.json"):
        run(tmp_path / "in", tmp_path / "foreign")


def test_an_out_dir_that_cannot_be_created_is_reported(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/out/\.lock: cannot be written.*Remedy"):
        run(tmp_path / "in", tmp_path / "file" / "out")
