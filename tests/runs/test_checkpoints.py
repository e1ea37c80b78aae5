import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import ModelConfig, TrainConfig
from mapseg.labels import LabelClass, make_label_set
from mapseg.model.weights import read_weights
from mapseg.runs import checkpoints
from mapseg.runs.checkpoints import Best
from mapseg.runs.folder import Run, amend_run, check_classes, lock_run, open_run, store_run
from mapseg.runs.history import append_history, cut_history, read_history, training_secs


def make_run(run_dir, **train):
    classes = tuple(LabelClass(i, f"c{i}", (i, i, i)) for i in range(3))
    labels = make_label_set(classes, "all")
    train = {"precision": "float32", "schedule_steps": 10, **train}
    return Run(
        run_dir,
        ModelConfig(encoder="mobilenet_v2"),
        TrainConfig(**train),
        labels,
        512,
        classes,
        "d",
    )


def save(run, step, value=0.0, keep=3):
    state = tf.train.Checkpoint(v=tf.Variable(value))
    weights = {"w": np.full([2], value)}
    return checkpoints.write_checkpoint(run.checkpoints_dir, step, state, weights, keep)


def test_a_run_is_read_back_as_stored(tmp_path):
    run = make_run(tmp_path / "run", seed=5)
    store_run(run)
    assert open_run(run.run_dir) == run


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*Remedy"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "damaged"), ("{}", "damaged"), ('{"format_version": 9}', "format")]
)
def test_a_damaged_or_newer_run_is_refused(tmp_path, text, message):
    run = make_run(tmp_path)
    store_run(run)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path)


def test_changeable_options_change_and_others_are_refused(tmp_path):
    run = make_run(tmp_path, steps=10)
    later = amend_run(run, {"steps": 20, "seed": 1, "precision": "auto"})
    assert later == dataclasses.replace(run, train=dataclasses.replace(run.train, steps=20))
    for name, value in (("seed", 2), ("encoder", "resnet50"), ("precision", "mixed_float16")):
        with pytest.raises(ValueError, match=f"{name}=.*stored.*{name}={value} is asked"):
            amend_run(run, {name: value})


def test_state_and_weights_come_back(tmp_path):
    run = make_run(tmp_path)
    path = save(run, 7, value=1.25)
    variable = tf.Variable(0.0)
    checkpoints.read_state(path, tf.train.Checkpoint(v=variable))
    assert float(variable) == 1.25
    assert read_weights(path)["w"].tolist() == [1.25, 1.25]


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    path = save(make_run(tmp_path), 7)
    for other in (
        tf.train.Checkpoint(v=tf.Variable([0.0, 1.0])),
        tf.train.Checkpoint(v=tf.Variable(0.0), more=tf.Variable(0.0)),
        tf.train.Checkpoint(),
    ):
        with pytest.raises(ValueError, match="must fit this run"):
            checkpoints.read_state(path, other)


def test_a_truncated_state_is_refused(tmp_path):
    path = save(make_run(tmp_path), 7)
    (data,) = path.glob("state.data*")
    data.write_bytes(data.read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.read_state(path, tf.train.Checkpoint(v=tf.Variable(0.0)))


def test_another_keras_is_refused_by_name(tmp_path):
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


def test_best_is_bound_to_what_it_was_measured_on(tmp_path):
    for found, best_step in (
        (Best(1, float("nan"), "validation", 0), None),
        (Best(2, 0.5, "validation", 0), 2),
        (Best(3, 0.4, "validation", 0), 2),
        (Best(4, 0.6, "validation", 0), 4),
        (Best(5, 0.3, "validation", 10), 5),  # other images: not comparable, the newer counts
        (Best(6, float("nan"), "other", 0), 5),
    ):
        checkpoints.note_score(tmp_path, found)
        best = checkpoints.read_best(tmp_path)
        assert (best.step if best else None) == best_step


def test_records_of_other_classes_are_refused(tmp_path):
    run = make_run(tmp_path)
    check_classes(run, run.source_classes, tmp_path)
    others = [dataclasses.replace(c, name=f"v2-{c.name}") for c in run.source_classes]
    with pytest.raises(ValueError, match="classes must be those"):
        check_classes(run, others, tmp_path)


def test_best_without_an_evaluation_is_the_newest(tmp_path):
    with pytest.raises(FileNotFoundError, match="train first"):
        checkpoints.find_checkpoint(tmp_path)
    save(make_run(tmp_path), 5)
    assert checkpoints.find_checkpoint(tmp_path).name == "step-00000005"


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    run = make_run(tmp_path)
    save(run, 5)
    (run.checkpoints_dir / ".step-00000009.123.partial").mkdir()
    assert checkpoints.saved_steps(run.checkpoints_dir) == [5]


def test_one_process_at_a_time(tmp_path):
    with (
        lock_run(tmp_path),
        pytest.raises(ValueError, match="one process"),
        lock_run(tmp_path),
    ):
        pass
    with lock_run(tmp_path):
        pass


def test_history_is_cut_where_a_run_goes_on(tmp_path):
    path = tmp_path / "history.csv"
    for step in (10, 20, 30):
        append_history(path, {"step": step, "loss": step / 10})
    append_history(path, {"step": 30, "mean_iou": 0.5})
    rows = cut_history(path, 20)
    assert (
        rows
        == read_history(path)
        == [
            {"step": 10, "loss": 1.0},
            {"step": 20, "loss": 2.0},
        ]
    )
    with path.open("a") as file:
        file.write("30,3.")  # as a killed process leaves it
    assert read_history(path) == rows


def test_a_history_that_is_not_there_or_not_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="train first"):
        read_history(tmp_path / "history.csv")
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns step, loss"):
        read_history(tmp_path / "history.csv")


def test_a_history_without_numbers_is_refused(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss\n1,much\n")
    with pytest.raises(ValueError, match=r"history\.csv: must hold numbers"):
        read_history(path)


def test_training_secs_adds_up_what_the_steps_took():
    rows = [
        {"step": 2, "loss": 1.0},  # the compiled step alone has no rate
        {"step": 10, "loss": 1.0, "images_per_s": 4.0},
        {"step": 10, "mean_iou": 0.5},
        {"step": 20, "loss": 1.0, "images_per_s": 8.0},
    ]
    assert training_secs(rows, batch_size=2) == 8 * 2 / 4 + 10 * 2 / 8
