"""Stale state: files of earlier runs are never taken for those of the requested run."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, tiny_scene
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mapseg.checks.case import Case
from mapseg.checks.options import check_flags, check_run_dir, check_weights
from mapseg.checks.records import check_ids, check_records
from mapseg.config import PredictConfig
from mapseg.data.manifest import read_manifest
from mapseg.errors import one_line
from mapseg.estimator import Estimator
from mapseg.evaluation import evaluate as evaluation
from mapseg.model.weights import read_weights, weight_arrays
from mapseg.runs import checkpoints
from mapseg.runs.folder import check_new, clear_leftovers, open_run
from mapseg.runs.history import read_history
from mapseg.training import loop
from mapseg.training.devices import Workers
from mapseg.training.journal import cut_events
from mapseg.training.prepare import begin_run
from mapseg.training.state import open_state
from mapseg.training.summary import describe

WEIGHTS = "checkpoints/step-00000004/weights.npz"


def quiet(_):
    pass


def train(run_dir, records_dir, tell=quiet, *, evaluating=False, **options):
    manifest = read_manifest(records_dir)
    run = begin_run(run_dir, manifest, options)
    loop.train(run, manifest, tell, evaluating=evaluating)
    return run


@pytest.fixture
def copied(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "run")


def other_weights(run_dir):
    """Changes the weights file, as training from scratch to the same step does."""
    path = run_dir / WEIGHTS
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored}
    for name in arrays:
        if name.startswith("logits"):
            arrays[name] = -arrays[name]
    np.savez(path, **arrays)


# --- the Estimator


def test_an_estimator_reads_retrained_weights(copied):
    image, _ = tiny_scene(np.random.default_rng(9))
    estimator = Estimator(copied, quiet)
    first = estimator.predict(image)
    loaded = estimator._loaded
    estimator.predict(image)
    assert estimator._loaded is loaded  # cached while nothing changed
    other_weights(copied)
    again = estimator.predict(image)
    fresh = Estimator(copied, quiet).predict(image)
    np.testing.assert_array_equal(again.ids, fresh.ids)
    assert again.confidence == fresh.confidence
    assert (again.ids != first.ids).any()


# --- the form of an evaluation


def test_training_and_estimator_write_the_same_fields(copied, records_dir):
    path = copied / "evaluation" / "validation.json"
    trained = json.loads(path.read_text())
    scores = Estimator(copied, quiet).evaluate(records_dir, panels=0)
    written = json.loads(path.read_text())
    assert list(trained) == list(written)
    details = {"mean_boundary_iou", "calibration_error", "classes", "regions", "calibration"}
    for name in trained.keys() - details - {"images"}:
        assert trained[name] == written[name], name
    for mine, theirs in zip(trained["images"], written["images"], strict=True):
        assert (mine["name"], mine["confusion"]) == (theirs["name"], theirs["confusion"])
        assert mine["boundary"] is None and theirs["boundary"]  # training counts no details
    assert trained["mean_iou"] == scores.mean_iou
    facts = {
        "split": "validation",
        "step": 4,
        "checkpoint": "step-00000004",
        "samples": 3,
        "records_digest": read_manifest(records_dir).split("validation").digest,
        **vars(PredictConfig()),
    }
    assert {name: trained[name] for name in facts} == facts


def test_a_stored_evaluation_is_read_only_if_all_facts_match(copied, records_dir, monkeypatch):
    """An evaluation by training counts like one by the Estimator."""
    real, calls = evaluation.evaluate, []

    def evaluate(*arguments, **options):
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    path = copied / "evaluation" / "validation.json"
    stored = json.loads(path.read_text())

    def score(config=None):
        return Estimator(copied, quiet).evaluate(
            records_dir, config=config, panels=0, details=False, again=False
        )

    assert score().confusion.tolist() == stored["confusion"]
    assert not calls
    score(PredictConfig(flip_average=True))
    assert len(calls) == 1
    score()
    assert len(calls) == 2
    other_weights(copied)  # of the same name
    assert score().confusion.tolist() != stored["confusion"]
    assert len(calls) == 3
    # Of the first samples only, as with --eval_samples.
    path.write_text(json.dumps({**json.loads(path.read_text()), "samples": 2}))
    score()
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("lacking", "is_read"),
    [
        (["step", "samples", "weights_sha256"], True),  # as the Estimator of ea21d24 wrote it
        (["checkpoint", "records_digest", "weights_sha256"], False),  # as its training did
        (["records_digest"], False),
        (["confusion"], False),
    ],
)
def test_an_older_evaluation_may_lack_newer_facts(copied, records_dir, lacking, is_read):
    path = copied / "evaluation" / "validation.json"
    stored = json.loads(path.read_text())
    for name in lacking:
        del stored[name]
    path.write_text(json.dumps(stored))
    run, manifest = open_run(copied), read_manifest(records_dir)
    checkpoint = checkpoints.find_checkpoint(copied)
    facts = evaluation.evaluation_facts(checkpoint, manifest, "validation", PredictConfig())
    scores = evaluation.matching_evaluation(path, run.label_set, facts)
    assert (scores is not None) == is_read
    other = {**facts, "checkpoint": "step-00000002"}
    assert evaluation.matching_evaluation(path, run.label_set, other) is None


# --- TensorBoard


def steps_by_tag(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


@pytest.mark.usefixtures("small")
def test_events_of_a_resumed_run_have_each_step_once(records_dir, tmp_path):
    run_dir = tmp_path / "run"
    options = {**TINY, "steps": 6, "checkpoint_steps": 3, "log_steps": 1, "eval_steps": 3}
    train(run_dir, records_dir, evaluating=True, **options)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")  # as if killed before writing it
    (file,) = (run_dir / "tensorboard").iterdir()
    with file.open("ab") as events:
        events.write(b"\x20\0\0\0")  # and while writing an event
    train(run_dir, records_dir, evaluating=True, **options)
    rows = read_history(run_dir / "history.csv")
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    steps = steps_by_tag(run_dir / "tensorboard")
    assert steps["loss"] == [1, 2, 3, 4, 5, 6]
    assert steps["mean_iou"] == [3, 6]
    raw = [
        event.step
        for path in sorted((run_dir / "tensorboard").iterdir())
        for event in tf.compat.v1.train.summary_iterator(str(path))  # drops nothing
        if event.summary.value and event.summary.value[0].tag == "loss"
    ]
    assert raw == [1, 2, 3, 4, 5, 6]
    before = {path: path.read_bytes() for path in (run_dir / "tensorboard").iterdir()}
    cut_events(run_dir / "tensorboard", 6)  # nothing to cut: not written again
    assert {path: path.read_bytes() for path in (run_dir / "tensorboard").iterdir()} == before


# --- a run that failed before its first checkpoint


@pytest.mark.usefixtures("small")
def test_a_start_after_a_failed_one_is_clean(records_dir, tmp_path, monkeypatch):
    run_dir, lines = tmp_path / "run", []
    with pytest.raises(FloatingPointError):
        train(run_dir, records_dir, learning_rate=1e30, **{**TINY, "log_steps": 1, "seed": 7})
    assert (run_dir / "config.json").exists()
    assert list((run_dir / "not_finite").iterdir())
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    for name in (
        "evaluation/validation.json",
        "evaluation/panels/a/b.jpg",
        "checkpoints/best.json",
        "loss.png",
        ".config.12.partial.json",
        "checkpoints/.step-00000002.12.partial/state.index",
        "notes.txt",
        "export/saved_model.pb",
        ".export.12.partial/saved_model.pb",
    ):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text("{}")
    train(run_dir, records_dir, lines.append, **TINY)
    (line,) = [line for line in lines if line.startswith("starting from scratch")]
    assert line.endswith(
        "removed files of an earlier start: checkpoints, evaluation, history.csv, loss.png, "
        "not_finite, tensorboard"
    )
    assert open_run(run_dir).train.seed == TINY.get("seed", 1)
    assert not (run_dir / "evaluation" / "validation.json").exists()
    assert not list((run_dir / "not_finite").iterdir())
    assert [r["step"] for r in read_history(run_dir / "history.csv")] == [2, 4]
    assert steps_by_tag(run_dir / "tensorboard")["loss"] == [2, 4]
    assert checkpoints.read_best(run_dir / "checkpoints") is None
    assert not list(run_dir.glob("**/.*config*"))
    assert not list(run_dir.glob("checkpoints/.*"))
    for name in ("notes.txt", "export/saved_model.pb", ".export.12.partial/saved_model.pb"):
        assert (run_dir / name).exists()  # not written by training

    lines.clear()  # a run with a checkpoint keeps its files
    train(run_dir, records_dir, lines.append, **{**TINY, "steps": 6})
    assert not [line for line in lines if line.startswith("starting from scratch")]
    assert [r["step"] for r in read_history(run_dir / "history.csv")] == [2, 4, 6]


def test_a_first_start_removes_nothing(tmp_path):
    assert clear_leftovers(tmp_path, is_new=True) == []


def test_files_of_a_killed_start_do_not_prevent_a_new_one(tmp_path):
    for name in ("labels.json", ".lock", ".config.31.partial.json"):
        (tmp_path / name).write_text("{}")
    check_new(tmp_path)
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(ValueError, match=r"it holds \.hidden and no config\.json"):
        check_new(tmp_path)


@pytest.mark.parametrize("text", ['{"model_type": "bert"}', "[]", "{"])
def test_a_config_of_another_program_is_not_changed(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: must be .*Remedy: give another --run_dir"):
        check_new(tmp_path)
    assert path.read_text() == text


def test_a_finished_run_without_its_history_is_only_evaluated_again(copied, records_dir):
    (copied / "history.csv").unlink()
    (copied / "evaluation" / "validation.json").unlink()
    weights = (copied / WEIGHTS).read_bytes()
    lines = []
    train(copied, records_dir, lines.append, evaluating=True)
    assert lines[-1] == f"finished at step 4: {copied}"
    assert (copied / WEIGHTS).read_bytes() == weights
    (row,) = read_history(copied / "history.csv")
    scores = json.loads((copied / "evaluation" / "validation.json").read_text())
    assert (row["step"], row["mean_iou"]) == (4, scores["mean_iou"])
    lines.clear()
    train(copied, records_dir, lines.append, evaluating=True)
    assert lines == [f"nothing to do: {copied} is finished at step 4"]


def test_a_removed_best_checkpoint_is_replaced(tmp_path):
    (tmp_path / "step-00000002").mkdir()
    best = checkpoints.Best(4, 0.9, "validation", 0)
    (tmp_path / "step-00000004").mkdir()
    checkpoints.note_score(tmp_path, best)
    checkpoints.note_score(tmp_path, checkpoints.Best(2, 0.5, "validation", 0))
    assert checkpoints.read_best(tmp_path) == best
    (tmp_path / "step-00000004").rmdir()
    checkpoints.note_score(tmp_path, checkpoints.Best(2, 0.5, "validation", 0))
    assert checkpoints.read_best(tmp_path).step == 2


# --- the sample of an error


@pytest.mark.parametrize("part", ["segment", "count_image", "write_jpg"])
def test_an_error_of_an_evaluation_names_the_sample(copied, records_dir, monkeypatch, part, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError("in the middle")

    estimator = Estimator(copied, quiet)
    owner = evaluation
    if part == "segment":
        owner = estimator._predictor(
            open_run(copied), PredictConfig(), checkpoints.find_checkpoint(copied)
        )
    monkeypatch.setattr(owner, part, fail)
    before = (copied / "evaluation" / "validation.json").read_text()
    with pytest.raises(ZeroDivisionError) as caught:
        estimator.evaluate(records_dir)
    line = one_line(caught.value)
    assert "in the middle (while evaluating sample validation-0, 60 x 80 pixels)" in line
    assert (copied / "evaluation" / "validation.json").read_text() == before


# --- options that name files


GROUPS = {
    "classes": [
        {"name": "way", "color": [1, 2, 3], "sources": ["flat--*", "marking--*"]},
        {"name": "sky", "color": [4, 5, 6], "sources": ["nature--*"]},
    ]
}


def stored_variables(run_dir, step):
    reader = tf.train.load_checkpoint(str(run_dir / f"checkpoints/step-{step:08d}/state"))
    names = reader.get_variable_to_shape_map()
    return {n: reader.get_tensor(n) for n in names if n != "_CHECKPOINTABLE_OBJECT_GRAPH"}


@pytest.mark.usefixtures("small")
def test_a_run_resumes_with_its_original_label_set(records_dir, tmp_path):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(GROUPS))
    options = {**TINY, "label_set": str(path), "schedule_steps": 4, "log_steps": 1}
    train(tmp_path / "whole", records_dir, **options)
    expected = stored_variables(tmp_path / "whole", 4)
    rows = read_history(tmp_path / "whole" / "history.csv")
    train(tmp_path / "edited", records_dir, **{**options, "steps": 2})
    for name in ("moved", "damaged"):
        shutil.copytree(tmp_path / "edited", tmp_path / name)

    def resume(name, **options):
        run_dir = tmp_path / name
        labels = (run_dir / "labels.json").read_bytes()
        train(run_dir, records_dir, steps=4, **options)
        assert (run_dir / "labels.json").read_bytes() == labels
        variables = stored_variables(run_dir, 4)
        assert variables.keys() == expected.keys()
        for key, value in variables.items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
        losses = [row["loss"] for row in read_history(run_dir / "history.csv")]
        assert losses == [row["loss"] for row in rows]

    groups = GROUPS["classes"]
    swapped = [
        {**groups[0], "sources": groups[1]["sources"]},
        {**groups[1], "sources": ["flat--*"]},
    ]
    path.write_text(json.dumps({"classes": swapped}))
    resume("edited")
    path.write_text("{")
    resume("damaged", label_set=str(path))  # requested again by the same name
    path.unlink()
    resume("moved", label_set=str(path))


def rename_files(run_dir, **options):
    """Makes the options of a run name files that no longer exist."""
    path = run_dir / "config.json"
    raw = json.loads(path.read_text())
    for kind in ("model", "train"):
        raw[kind].update({k: v for k, v in options.items() if k in raw[kind]})
    path.write_text(json.dumps(raw))


def test_evaluation_and_doctor_do_not_read_the_label_sets_file(copied, records_dir):
    stored = json.loads((copied / "evaluation" / "validation.json").read_text())
    rename_files(copied, label_set="gone.json")
    assert (
        Estimator(copied, quiet).evaluate(records_dir, panels=0).confusion.tolist()
        == (stored["confusion"])
    )
    case = Case({"label_set": "gone.json"}, copied, records_dir, "train", quiet)
    for check in (check_flags, check_run_dir, check_records, check_ids):
        assert check(case).level == "ok"
    assert case.labels == open_run(copied).label_set


@pytest.mark.parametrize("option", ["label_set", "init_from", "encoder_weights"])
def test_another_file_is_refused_and_both_files_are_named(copied, records_dir, option):
    rename_files(copied, **{option: "first.json"})
    message = rf"{option}=first\.json is stored, {option}=second\.json is requested\. Remedy: "
    options = {option: "second.json"}
    with pytest.raises(ValueError, match=message):
        train(copied, records_dir, **options)
    with pytest.raises(ValueError, match=message):  # as --mode=evaluate and export do
        Estimator(copied, quiet).amended(options)
    with pytest.raises(ValueError, match=message):
        check_run_dir(Case(options, copied, records_dir, "train", quiet))


def test_initial_weights_are_not_read_again(copied):
    """The checkpoint has all weights: the files may be gone, or hold other weights by now."""
    rename_files(copied, init_from="gone", encoder_weights="gone.h5")
    run = open_run(copied)
    lines = []
    state = open_state(run, tf.distribute.get_strategy(), lines.append, resumed=True)
    assert lines == []
    written = read_weights(checkpoints.find_checkpoint(copied))
    for name, value in weight_arrays(state.model).items():
        np.testing.assert_array_equal(value, written[name], err_msg=name)
    assert describe(run, state, 6, Workers(tf.distribute.get_strategy()))
    case = Case({}, copied, None, "train", quiet)
    assert check_run_dir(case).level == "ok"
    assert check_weights(case).text == "from the checkpoint of step 4"
