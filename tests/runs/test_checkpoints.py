import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from runs_by_hand import make_run

from mapseg.model.weights import read_weights
from mapseg.runs import checkpoints
from mapseg.runs.checkpoints import Best
from mapseg.runs.folder import open_run, store_run


def save(run, step, value=0.0, keep=3):
    state = tf.train.Checkpoint(v=tf.Variable(value))
    weights = {"w": np.full([2], value)}
    return checkpoints.write_checkpoint(run.checkpoints_dir, step, state, weights, keep)


def test_state_and_weights_are_read_back(tmp_path):
    run = make_run(tmp_path)
    path = save(run, 7, value=1.25)
    variable = tf.Variable(0.0)
    checkpoints.read_state(path, tf.train.Checkpoint(v=variable))
    assert float(variable) == 1.25
    assert read_weights(path)["w"].tolist() == [1.25, 1.25]


def test_a_state_that_does_not_match_is_refused(tmp_path):
    path = save(make_run(tmp_path), 7)
    for other in (
        tf.train.Checkpoint(v=tf.Variable([0.0, 1.0])),
        tf.train.Checkpoint(v=tf.Variable(0.0), w=tf.Variable(0.0)),
        tf.train.Checkpoint(),
    ):
        with pytest.raises(ValueError, match=r"match this run; (?s:.*)Remedy: "):
            checkpoints.read_state(path, other)


def test_a_truncated_state_is_refused(tmp_path):
    path = save(make_run(tmp_path), 7)
    (data,) = path.glob("state.data*")
    data.write_bytes(data.read_bytes()[:-3])
    with pytest.raises(
        ValueError, match=rf"must be complete.*Remedy: copy .* or remove {path}: .* step 0"
    ):
        checkpoints.read_state(path, tf.train.Checkpoint(v=tf.Variable(0.0)))


def test_another_keras_is_refused_and_named(tmp_path):
    path = save(make_run(tmp_path), 7)
    info = json.loads((path / "info.json").read_text())
    (path / "info.json").write_text(json.dumps({**info, "keras": "9.1.0"}))
    with pytest.raises(ValueError, match=r"9\.1\.0.*--init_from"):
        checkpoints.read_state(path, tf.train.Checkpoint(v=tf.Variable(0.0)))


def test_the_last_n_and_the_best_stay(tmp_path):
    run = make_run(tmp_path)
    for step in (10, 20, 30, 40):
        save(run, step, keep=2)
        if step == 10:
            checkpoints.note_score(run.checkpoints_dir, Best(10, 0.5, "validation", 0))
    assert checkpoints.saved_steps(run.checkpoints_dir) == [10, 30, 40]
    assert checkpoints.find_checkpoint(tmp_path, "best").name == "step-00000010"
    assert checkpoints.find_checkpoint(tmp_path, "latest").name == "step-00000040"
    assert checkpoints.find_checkpoint(tmp_path, "30").name == "step-00000030"
    with pytest.raises(FileNotFoundError, match=r"\[10, 30, 40\]; got 20"):
        checkpoints.find_checkpoint(tmp_path, "20")


def test_best_is_compared_only_on_the_same_images(tmp_path):
    for score, best_step in (
        (Best(1, float("nan"), "validation", 0), None),
        (Best(2, 0.5, "validation", 0), 2),
        (Best(3, 0.4, "validation", 0), 2),
        (Best(4, 0.6, "validation", 0), 4),
        (Best(5, 0.3, "validation", 10), 5),  # other images: not comparable, the newer counts
        (Best(6, float("nan"), "other", 0), 5),
        (Best(7, 0.2, "validation", 10, "a"), 5),  # not known how the other was measured
        (Best(8, 0.4, "validation", 10, "a"), 8),
        (Best(9, 0.3, "validation", 10, "b"), 9),  # with other options, or other records
        (Best(10, 0.2, "validation", 10, "b"), 9),
    ):
        (tmp_path / f"step-{score.step:08d}").mkdir()
        checkpoints.note_score(tmp_path, score)
        best = checkpoints.read_best(tmp_path)
        assert (best.step if best else None) == best_step


def test_best_without_an_evaluation_is_the_newest(tmp_path):
    with pytest.raises(FileNotFoundError, match="train first"):
        checkpoints.find_checkpoint(tmp_path)
    save(make_run(tmp_path), 5)
    assert checkpoints.find_checkpoint(tmp_path).name == "step-00000005"


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    run = make_run(tmp_path)
    save(run, 5)
    (run.checkpoints_dir / ".step-00000009.123.partial").mkdir()
    assert checkpoints.saved_steps(run.checkpoints_dir) == [5]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Its ids may mean other classes, though all shapes fit."""
    runs = [make_run(tmp_path / name) for name in ("a", "b", "old")]
    runs[2] = dataclasses.replace(runs[2], id="")  # of a version without ids
    for run in runs:
        store_run(run)
        assert open_run(run.run_dir).id == run.id
        save(run, 1)
    assert checkpoints.find_checkpoint(runs[0].run_dir).name == "step-00000001"
    shutil.copytree(
        runs[1].checkpoints_dir / "step-00000001", runs[0].checkpoints_dir / "step-00000002"
    )
    message = f"step-00000002: a checkpoint must belong to the run of its.*{runs[1].id}.*Remedy"
    with pytest.raises(ValueError, match=message):
        checkpoints.find_checkpoint(runs[0].run_dir)
    with pytest.raises(ValueError, match=message):
        checkpoints.read_state(
            runs[0].checkpoints_dir / "step-00000002", tf.train.Checkpoint(v=tf.Variable(0.0))
        )
    save(runs[2], 3)
    shutil.copytree(
        runs[2].checkpoints_dir / "step-00000003", runs[0].checkpoints_dir / "step-00000003"
    )
    assert checkpoints.find_checkpoint(runs[0].run_dir).name == "step-00000003"


def test_a_renamed_checkpoint_is_refused(tmp_path):
    """Training would resume from step 1 and not save step 2, which seems to be there."""
    run = make_run(tmp_path)
    save(run, 1)
    path = run.checkpoints_dir / "step-00000002"
    (run.checkpoints_dir / "step-00000001").rename(path)
    message = "step-00000002: a checkpoint must have the step of its name; it has step 1"
    with pytest.raises(ValueError, match=message):
        checkpoints.find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=message):
        checkpoints.read_state(path, tf.train.Checkpoint(v=tf.Variable(0.0)))
