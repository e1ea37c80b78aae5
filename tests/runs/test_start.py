import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from runs_by_hand import make_run

from mapseg.files import file_sha256
from mapseg.runs.checkpoints import find_checkpoint
from mapseg.runs.folder import open_run, store_run
from mapseg.runs.start import find_start, start_sha256


def test_a_start_is_identified_by_its_weights(run_dir, tmp_path):
    checkpoint = find_checkpoint(run_dir)
    weights_path = checkpoint / "weights.npz"
    assert find_start(str(run_dir)) == checkpoint
    assert find_start(str(checkpoint)) == checkpoint
    copied = tmp_path / "copied.npz"
    shutil.copy(weights_path, copied)
    digests = {start_sha256(str(path)) for path in (run_dir, checkpoint, weights_path, copied)}
    assert digests == {file_sha256(weights_path)}
    np.savez(copied, other=np.zeros(3))
    assert start_sha256(str(copied)) not in digests


def test_a_deeplab_checkpoint_is_identified_by_its_index(tmp_path):
    (tmp_path / "model.ckpt.index").write_bytes(b"checksums")
    prefix = str(tmp_path / "model.ckpt")
    assert start_sha256(prefix) == file_sha256(tmp_path / "model.ckpt.index")
    with pytest.raises(FileNotFoundError, match=r"gone: init_from must be a run folder"):
        start_sha256(str(tmp_path / "gone"))


def test_a_run_stores_the_digest_of_its_start(tmp_path):
    run = make_run(tmp_path)
    store_run(run)
    assert "start_sha256" not in json.loads((tmp_path / "config.json").read_text())
    assert open_run(tmp_path).start_sha256 == ""
    store_run(replace(run, start_sha256="ab"))
    assert open_run(tmp_path).start_sha256 == "ab"
