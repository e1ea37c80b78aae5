"""What an evaluation during training reports and stores."""

import json

import numpy as np
import pytest
from conftest import TINY

from mapseg.config import PredictConfig
from mapseg.data.manifest import read_manifest
from mapseg.evaluation.counting import ImageCounts, to_cells
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.runs.checkpoints import read_best
from mapseg.training import loop, validation
from mapseg.training.prepare import begin_run

HITS = {2: 50, 4: 60, 6: 57}  # of 100 pixels of the first class, by step


@pytest.fixture
def go(records_dir, tmp_path, monkeypatch, small):
    """Trains up to a step with scripted scores; returns the progress lines about classes."""
    lines = []

    def evaluate(predictor, manifest, split, label_set, progress, **_):
        done = sum("mean IoU" in line for line in lines)
        hits = list(HITS.values())[done]
        confusion = np.array([[hits, 100 - hits, 0, 0], [0, 0, 0, 0], [0, 0, 7, 0]])
        return evaluation_of([ImageCounts("a", to_cells(confusion))], label_set)

    monkeypatch.setattr(validation, "evaluate", evaluate)

    def train(steps, predicting=None, **options):
        options = {**TINY, "eval_steps": 2, "schedule_steps": 6, "steps": steps, **options}
        run = begin_run(tmp_path / "run", read_manifest(records_dir), options)
        before = len(lines)
        loop.train(run, read_manifest(records_dir), lines.append, predicting=predicting)
        return [line for line in lines[before:] if "(IoU in points)" in line]

    return train


BETTER = "step 4: better: flat--road +10.0 (IoU in points)"
WORSE = "step 6: worse: flat--road -3.0 (IoU in points)"


def test_each_evaluation_is_compared_with_the_previous_one(go):
    assert go(6) == [BETTER, WORSE]


def test_a_resumed_run_compares_with_the_evaluation_in_its_folder(go):
    assert go(4) == [BETTER]
    assert go(6) == [WORSE]


def test_what_is_no_previous_evaluation_is_not_compared(go, tmp_path):
    path = tmp_path / "run/evaluation/validation.json"
    go(2)
    stored = json.loads(path.read_text())
    path.write_text(path.read_text()[:-9])  # damaged
    assert go(4) == []
    path.write_text(json.dumps({**stored, "step": 2}))  # someone evaluated an older checkpoint
    assert go(6) == []


def test_evaluations_of_other_images_are_not_compared(go):
    go(2)
    assert go(4, eval_samples=1) == []


def test_scores_of_other_options_of_prediction_are_not_compared(go, tmp_path):
    """Step 6 scores less than step 4, but with an option that may change any score."""
    go(4)
    assert read_best(tmp_path / "run/checkpoints").step == 4
    assert go(6, predicting=PredictConfig(flip_average=True)) == []
    assert read_best(tmp_path / "run/checkpoints").step == 6
