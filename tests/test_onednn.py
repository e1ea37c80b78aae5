"""Each case runs in its own process: TensorFlow reads the setting once."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from runs.runs_by_hand import make_run

from mapseg import onednn
from mapseg.runs.folder import open_run, store_run

SHOW = f"import os; print(os.environ.get('{onednn.VARIABLE}'))"


def output_of(code, **variables):
    environment = {k: v for k, v in os.environ.items() if k != onednn.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("before", "then", "expected"),
    [
        ("", "", "1"),
        ("0", "", "0"),
        ("1", "", "1"),
        ("", "onednn.use_stored(True)", "1"),
        ("", "onednn.use_stored(False)", "0"),
        ("", "onednn.use_stored(None)", "None"),
        ("0", "onednn.use_stored(True)", "1"),
        ("0", "onednn.use_stored(None)", "0"),
    ],
)
def test_it_is_on_unless_the_user_or_a_run_decides(before, then, expected):
    variables = {onednn.VARIABLE: before} if before else {}
    code = f"from mapseg import onednn; {then or 'pass'}; {SHOW}"
    assert output_of(code, **variables)[0] == expected


def test_tensorflow_follows_the_setting():
    code = "from mapseg import onednn; onednn.use_stored({}); print(onednn.is_on())"
    assert [output_of(code.format(on))[0] for on in (True, False)] == ["True", "False"]


def test_tensorflow_imported_first_is_a_warning_that_it_stays_off():
    code = f"import os, tensorflow; del os.environ['{onednn.VARIABLE}']; import mapseg; {SHOW}"
    shown, errors = output_of(code, **{onednn.VARIABLE: "0"})
    assert shown == "None"
    assert "TensorFlow was imported before mapseg: oneDNN" in errors
    assert "import mapseg first, or set TF_ENABLE_ONEDNN_OPTS=1" in errors


@pytest.mark.parametrize("stored", [True, False, None])
def test_a_run_stores_it_and_reports_a_different_setting(tmp_path, stored):
    run = replace(make_run(tmp_path), onednn=stored)
    store_run(run)
    assert open_run(tmp_path).onednn is stored
    line = onednn.difference(stored)
    if stored in (None, onednn.is_on()):
        assert line == ""
    else:
        assert line.startswith("this run began with oneDNN ")
        assert f"TF_ENABLE_ONEDNN_OPTS={stored:d}" in line


@pytest.mark.parametrize("stored", [True, False])
def test_a_run_resumes_with_the_setting_that_it_began_with(own_run_dir, stored):
    store_run(replace(open_run(own_run_dir), onednn=stored))
    code = f"""
from pathlib import Path
from mapseg import onednn
from mapseg.training.prepare import resume_run
run = resume_run(Path({str(own_run_dir)!r}), {{}})
print(run.onednn, onednn.is_on())
"""
    assert output_of(code)[0] == f"{stored} {stored}"


def test_a_new_run_stores_the_current_setting(run_dir):
    assert open_run(run_dir).onednn is onednn.is_on()


def test_a_prediction_prints_nothing_about_operations_that_onednn_lacks(run_dir):
    code = f"""
from mapseg import startup
startup.quiet_tensorflow()
import numpy as np
from mapseg import Estimator
from mapseg.model import deeplab
from train_tiny import build_tiny_encoder
deeplab.build_encoder = build_tiny_encoder
print(Estimator({str(run_dir)!r}).predict(np.zeros([90, 70, 3], np.uint8)).ids.shape)
"""
    assert output_of(code) == ("(90, 70)", "")
