import errno
import json
import shutil

import numpy as np
import pytest
from conftest import tiny_scene

from mapseg.config import PredictConfig
from mapseg.estimator import Estimator
from mapseg.evaluation import evaluate as evaluation
from mapseg.evaluation import stored
from mapseg.files import WriteError
from mapseg.inference import predictor


@pytest.mark.addons
def test_a_notebook_can_train_evaluate_and_predict(records_dir, own_run_dir):
    estimator = Estimator(own_run_dir, progress=print)
    assert estimator.run.train.steps == 4
    scores = estimator.evaluate(
        records_dir, "training", PredictConfig(flip_average=True, scales="1,2")
    )
    written = json.loads((own_run_dir / "evaluation" / "training.json").read_text())
    assert written["mean_iou"] == scores.mean_iou
    assert (written["checkpoint"], written["flip_average"]) == ("step-00000004", True)
    assert (written["scale"], written["scales"]) == ("auto", "1,2")

    image, _ = tiny_scene(np.random.default_rng(9))
    prediction = estimator.predict(image)
    assert prediction.ids.shape == (60, 80)
    probability = estimator.predict(image, probability=True).probability
    assert probability.shape == (60, 80)
    assert 1 / 3 <= probability.min() <= probability.max() <= 1
    assert 1 / 3 <= prediction.confidence <= 1
    assert prediction.scale == 1
    again = Estimator(own_run_dir).predict(image)  # loads the network again
    np.testing.assert_array_equal(again.ids, prediction.ids)


def test_training_and_estimator_evaluate_to_the_same_scores(records_dir, own_run_dir):
    """The weights file holds the trained weights, so its scores are the same."""
    trained = json.loads((own_run_dir / "evaluation" / "validation.json").read_text())
    assert (trained["scale"], trained["scales"], trained["flip_average"]) == ("auto", "1", False)
    scores = Estimator(own_run_dir, progress=print).evaluate(records_dir)
    assert scores.confusion.tolist() == trained["confusion"]


def test_before_training_there_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        _ = Estimator(tmp_path / "none").run


@pytest.mark.parametrize("place", ["evaluation", "evaluation/panels"])
def test_an_unwritable_run_folder_is_reported_before_the_work(
    place, records_dir, own_run_dir, monkeypatch
):
    def work(*_, **__):
        raise AssertionError("it must not start")

    monkeypatch.setattr(evaluation, "evaluate", work)
    shutil.rmtree(own_run_dir / place)
    (own_run_dir / place).touch()
    with pytest.raises(WriteError, match=f"{place}: cannot be written.*where a folder is needed"):
        Estimator(own_run_dir, progress=print).evaluate(records_dir)
    monkeypatch.setattr(predictor, "load_predictor", work)
    with pytest.raises(WriteError, match="where a folder is needed"):
        Estimator(own_run_dir).export(own_run_dir / "config.json" / "export")


def test_scores_that_cannot_be_written_are_shown(records_dir, own_run_dir, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "validation.json")

    monkeypatch.setattr(stored, "write_evaluation", full)
    lines = []
    with pytest.raises(OSError, match="No space left"):
        Estimator(own_run_dir, progress=lines.append).evaluate(records_dir)
    assert "mean IoU" in lines[-1]


def test_a_run_is_scored_on_labels_of_other_classes(records_dir, own_run_dir, tmp_path):
    """Here the mapping swaps the names of two classes of the same records."""
    estimator = Estimator(own_run_dir, progress=print)
    classes = estimator.run.label_set.classes
    plain = estimator.evaluate(records_dir, "training", panels=0)
    swapped = {classes[0].name: classes[1].name, classes[1].name: classes[0].name}
    targets = [{"name": c.name, "color": list(c.color), "id": c.id + 7} for c in classes]
    lines = [
        {"source": c.name, "target": swapped.get(c.name, c.name), "reason": "a test"}
        for c in classes
    ]
    path = tmp_path / "swap.json"
    path.write_text(json.dumps({"void_id": 0, "targets": targets, "lines": lines}))
    mapped = estimator.evaluate(records_dir, "training", panels=0, mapping=str(path))
    order = [1, 0, *range(2, len(classes) + 1)]
    np.testing.assert_array_equal(mapped.confusion, plain.confusion[:, order])
    folder = own_run_dir / "evaluation"
    own, other = (
        json.loads((folder / name).read_text()) for name in ("training.json", "training-swap.json")
    )
    assert own["confusion"] == plain.confusion.tolist()  # not overwritten
    assert other["confusion"] == mapped.confusion.tolist()
    assert "mapping" in other and "mapping" not in own
    path.write_text(json.dumps({"void_id": 0, "targets": targets, "lines": lines[1:]}))
    with pytest.raises(ValueError, match=r"lines must cover every predicted class"):
        estimator.evaluate(records_dir, "training", mapping=str(path))
