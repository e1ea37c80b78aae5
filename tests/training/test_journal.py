"""What TensorBoard gets from a training run."""

import json

import cv2
import numpy as np
import pytest
from conftest import TINY
from runs.runs_by_hand import make_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from mapseg.confusion_chart import draw_confusion
from mapseg.data.manifest import read_manifest
from mapseg.evaluation.scores import Scores
from mapseg.model.weights import read_weights
from mapseg.pictures import shrink
from mapseg.runs.checkpoints import find_checkpoint
from mapseg.runs.history import read_history
from mapseg.training import journal as journal_module
from mapseg.training import validation
from mapseg.training.journal import Journal
from mapseg.training.loop import train
from mapseg.training.prepare import begin_run


def read_events(run_dir):
    """Returns (scalars, pictures): values by step, by tag; pictures are [h, w, 3] uint8 RGB."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    scalars, pictures = {}, {}
    for tag in events.Tags()["tensors"]:
        values = {e.step: tensor_util.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
        if events.summary_metadata[tag].plugin_data.plugin_name == "images":
            for step, (_, _, png) in values.items():
                picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
                pictures.setdefault(tag, {})[step] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        else:
            scalars[tag] = {step: float(value) for step, value in values.items()}
    return scalars, pictures


@pytest.mark.usefixtures("small")
def test_tensorboard_gets_the_columns_of_the_history_at_their_steps(records_dir, tmp_path):
    manifest = read_manifest(records_dir)
    options = {**TINY, "steps": 5, "log_steps": 1, "eval_steps": 3}
    run = begin_run(tmp_path / "run", manifest, options)
    train(run, manifest, print)
    scalars, _ = read_events(run.run_dir)
    scalars = {tag: values for tag, values in scalars.items() if "/" not in tag}
    every, scored = [1, 2, 3, 4, 5], [3, 5]
    assert {tag: list(values) for tag, values in scalars.items()} == {
        "loss": every,
        "learning_rate": every,
        "loss_scale": every,
        "gradient_norm": every,
        "weight_norm": every,
        "skipped_steps": every,
        "images_per_s": every[1:],  # not for the first step: it compiles
        "mean_iou": scored,
        "pixel_accuracy": scored,
    }
    rows = read_history(run.history_path)
    for tag, values in scalars.items():
        expected = [row[tag] for row in rows if tag in row]
        np.testing.assert_allclose(list(values.values()), expected, rtol=1e-6, err_msg=tag)
    assert min(scalars["gradient_norm"].values()) > 0
    weights = read_weights(find_checkpoint(run.run_dir, "latest"))
    trained = [v for name, v in weights.items() if "moving" not in name]
    norm = np.sqrt(sum(np.sum(np.square(v)) for v in trained))
    assert scalars["weight_norm"][5] == pytest.approx(norm, rel=1e-6)


@pytest.mark.usefixtures("small")
def test_tensorboard_gets_iou_confusion_and_panels_of_each_evaluation(
    records_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(validation, "_EVENT_PANELS", 2)
    monkeypatch.setattr(validation, "_EVENT_PANEL_PX", 300)
    manifest = read_manifest(records_dir)
    run = begin_run(tmp_path / "run", manifest, {**TINY, "steps": 5, "eval_steps": 3})
    train(run, manifest, print)
    scalars, pictures = read_events(run.run_dir)
    stored = json.loads((run.run_dir / "evaluation/validation.json").read_text())
    iou = {tag: values for tag, values in scalars.items() if tag.startswith("iou/")}
    assert all(list(values) == [3, 5] for values in (*iou.values(), *pictures.values()))
    assert {tag: values[5] for tag, values in iou.items()} == {
        f"iou/{name}": pytest.approx(value, rel=1e-6) for name, value in stored["iou"].items()
    }
    assert pictures.keys() == {"confusion", "panels/validation-0", "panels/validation-1"}
    confusion = draw_confusion(np.array(stored["confusion"]), run.label_set.names)
    np.testing.assert_array_equal(pictures["confusion"][5], confusion)
    for tag in pictures.keys() - {"confusion"}:
        path = run.run_dir / "evaluation" / f"{tag}.jpg"
        panel = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        picture = pictures[tag][5]
        assert max(picture.shape) == 300
        difference = np.abs(picture.astype(int) - shrink(panel, 300))
        assert difference.mean() < 3  # the file is a JPEG


def test_classes_without_pixels_have_no_iou(tmp_path):
    run = make_run(tmp_path / "run")
    journal = Journal(run, print, is_first=True, step=0)
    confusion = np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]])
    journal.show_evaluation(4, Scores(confusion, run.label_set), {})
    scalars, pictures = read_events(run.run_dir)
    assert scalars == {
        "iou/c0": {4: pytest.approx(3 / 5)},
        "iou/c1": {4: pytest.approx(5 / 7)},
    }
    assert list(pictures) == ["confusion"]


@pytest.mark.usefixtures("small")
def test_a_resumed_run_repeats_no_evaluation_in_the_events(records_dir, tmp_path):
    manifest = read_manifest(records_dir)
    for steps in (3, 5):
        options = {**TINY, "steps": steps, "eval_steps": 3, "schedule_steps": 5}
        run = begin_run(tmp_path / "run", manifest, options)
        train(run, manifest, print)
    events = EventAccumulator(str(run.run_dir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    for tag in ("mean_iou", "iou/flat--road", "confusion"):
        assert [e.step for e in events.Tensors(tag)] == [3, 5], tag


def test_the_plot_is_redrawn_only_if_there_are_new_rows(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(journal_module, "plot_history", lambda rows, *_: drawn.append(len(rows)))
    run = make_run(tmp_path / "run")
    run.run_dir.mkdir()
    journal = Journal(run, lambda _: None, is_first=True, step=0)
    for row in ({"step": 1, "loss": 2.0}, {"step": 1, "mean_iou": 0.5}):
        journal.record(row)
        journal.plot()
        journal.plot()
    assert drawn == [1, 2]
    Journal(run, lambda _: None, is_first=True, step=1).plot()  # resumed: maybe never drawn
    assert drawn == [1, 2, 2]


def test_other_workers_than_the_first_write_nothing(tmp_path):
    lines = []
    run = make_run(tmp_path / "run")
    journal = Journal(run, lines.append, is_first=False, step=0)
    journal.log(1, {"loss": 0.5, "skipped_steps": 0})
    journal.record({"step": 1, "mean_iou": 0.5})
    journal.show_evaluation(1, Scores(np.eye(3, dtype=np.int64), run.label_set), {})
    journal.plot()
    assert len(lines) == 1
    assert not list(tmp_path.rglob("*"))
