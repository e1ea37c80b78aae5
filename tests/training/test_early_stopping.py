"""A run ends early if its validation mean IoU no longer improves."""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from test_loop import assert_same_state, flags, quiet
from train_small import build_model

import train_main
from mapseg.config import TrainConfig
from mapseg.data.manifest import read_manifest
from mapseg.evaluation.counting import ImageCounts, to_cells
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.runs.checkpoints import Best, note_score, read_best, saved_steps
from mapseg.runs.folder import open_run
from mapseg.runs.history import append_history, read_history
from mapseg.training import loop, validation
from mapseg.training.early_stopping import (
    EarlyEnd,
    early_end,
    scores_by_step,
    stored_early_end,
)
from mapseg.training.prepare import begin_run

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([], 1, None),
        ([0.5], 1, None),
        ([0.5, 0.4, 0.3], 0, None),  # off
        ([0.5, 0.4], 1, EarlyEnd(1, 1)),
        ([0.5, 0.4], 2, None),
        ([0.5, 0.4, 0.45], 2, EarlyEnd(2, 1)),  # better than the last, not than the best
        ([0.5, 0.5, 0.5], 2, EarlyEnd(2, 1)),  # equal is not better
        ([0.5, 0.4, 0.6, 0.5], 2, None),  # counts from the best
        ([0.5, 0.4, 0.6, 0.5, 0.6], 2, EarlyEnd(2, 3)),
        ([0.5, NAN, NAN], 2, EarlyEnd(2, 1)),
        ([NAN, NAN, 0.1], 2, None),
        ([NAN, 0.1, NAN, 0.05], 2, EarlyEnd(2, 2)),
        ([NAN, NAN], 2, EarlyEnd(2, None)),
        ([0.5, 0.4, 0.3, 0.2], 2, EarlyEnd(3, 1)),  # the option was added later
    ],
)
def test_the_decision_follows_the_history(scores, patience, expected):
    assert early_end(dict(enumerate(scores, start=1)), patience) == expected


def test_the_best_checkpoint_counts_where_other_images_were_evaluated():
    """From step 3 on, more and harder images: lower scores, of which the first is the best."""
    scores = {1: 0.8, 2: 0.7, 3: 0.4, 4: 0.3}
    assert early_end(scores, 2) == EarlyEnd(3, 1)
    assert early_end(scores, 2, best_step=3) is None
    assert early_end(scores, 1, best_step=3) == EarlyEnd(1, 3)
    assert early_end({1: 0.8, 2: 0.7}, 1, best_step=3) is None  # killed before the row of step 3


def test_the_reason_is_a_clause():
    assert str(EarlyEnd(1, 5)) == "1 evaluation without a better mean IoU than at step 5"
    assert str(EarlyEnd(3, 5)) == "3 evaluations in a row without a better mean IoU than at step 5"
    assert str(EarlyEnd(2, None)) == "2 evaluations in a row without a mean IoU"


def test_only_evaluations_up_to_the_newest_checkpoint_count(records_dir, tmp_path):
    """Someone removed the later checkpoints: training repeats their evaluations."""
    options = {**TINY, "steps": 99, "early_stopping": 2}
    run = begin_run(tmp_path / "run", read_manifest(records_dir), options)
    assert stored_early_end(run) is None
    for step, score in ((2, 0.5), (4, 0.4), (6, 0.3)):
        (run.checkpoints_dir / f"step-{step:08d}").mkdir(parents=True)
        append_history(run.history_path, {"step": step, "loss": 1.0})
        append_history(run.history_path, {"step": step, "mean_iou": score})
        note_score(run.checkpoints_dir, Best(step, score, "validation", 0))
    assert stored_early_end(run) == EarlyEnd(2, 2)
    assert stored_early_end(replace(run, train=replace(run.train, early_stopping=3))) is None
    (run.checkpoints_dir / "step-00000006").rmdir()
    assert stored_early_end(run) is None
    (run.checkpoints_dir / "step-00000002").rmdir()  # the best one: its score is in the history
    assert stored_early_end(replace(run, train=replace(run.train, early_stopping=1))) == EarlyEnd(
        1, 2
    )


@pytest.fixture
def unchanging_scores(monkeypatch, small):
    """Gives every evaluation the same score, so that the first remains the best."""

    def evaluate(predictor, manifest, split, label_set, progress, **_):
        cells = to_cells(np.eye(3, 4, dtype=np.int64))
        return evaluation_of([ImageCounts("a", cells)], label_set)

    monkeypatch.setattr(validation, "evaluate", evaluate)
    monkeypatch.setattr(validation, "build_model", build_model)


@pytest.mark.usefixtures("unchanging_scores")
def test_a_run_ends_early_stays_ended_and_continues_with_another_value(
    records_dir, tmp_path, capsys
):
    run_dir = tmp_path / "run"
    options = {**TINY, "records_dir": records_dir, "run_dir": run_dir, "steps": 12, "eval_steps": 2}

    def command(**more):
        arguments = flags({**options, "compile_cache_dir": "", "report": False, **more})
        assert train_main.main(["train_main.py", *arguments]) == 0
        return capsys.readouterr().out

    def evaluated():
        return list(scores_by_step(read_history(run_dir / "history.csv")))

    reason = "2 evaluations in a row without a better mean IoU than at step 2"
    remedy = "a larger --early_stopping, or 0, continues"
    expected = f"finished early at step 6: {reason}; {remedy}: {run_dir}\n"
    assert command(early_stopping=2).endswith(expected)
    assert saved_steps(run_dir / "checkpoints")[-1] == 6
    assert read_best(run_dir / "checkpoints").step == 2
    assert evaluated() == [2, 4, 6]

    before = (run_dir / "history.csv").read_text()
    again = f"nothing to do: {run_dir} ended early at step 6: {reason}; {remedy}\n"
    assert command(early_stopping=2) == command() == again
    assert (run_dir / "history.csv").read_text() == before

    assert "finished early at step 8: 3 evaluations" in command(early_stopping=3)
    assert open_run(run_dir).train.early_stopping == 3
    assert command(early_stopping=0).endswith(f"finished at step 12: {run_dir}\n")
    assert evaluated() == [2, 4, 6, 8, 10, 12]
    assert command(early_stopping=1) == f"nothing to do: {run_dir} is finished at step 12\n"

    # As if it had never stopped: weights and learning rates are those of one call.
    whole = tmp_path / "whole"
    command(run_dir=whole)
    assert_same_state(whole, run_dir, 12)
    rates = [
        [(r["step"], r["learning_rate"]) for r in read_history(path / "history.csv") if "loss" in r]
        for path in (whole, run_dir)
    ]
    assert rates[0] == rates[1]


@pytest.mark.usefixtures("unchanging_scores")
def test_an_interrupted_run_ends_early_at_the_same_step(records_dir, tmp_path):
    manifest = read_manifest(records_dir)
    options = {**TINY, "steps": 12, "eval_steps": 2, "early_stopping": 2}

    def go(name, interrupted=False):
        run, lines = begin_run(tmp_path / name, manifest, options), []

        def stopping():
            return interrupted and any(line.startswith("step 4/") for line in lines)

        loop.train(run, manifest, lines.append, stopping=stopping)
        return run, lines[-1]

    whole, line = go("whole")
    assert line.startswith("finished early at step 6")
    _, line = go("cut", interrupted=True)
    assert line == "stopped and saved at step 4; the same command resumes"
    cut, line = go("cut")
    assert line.startswith("finished early at step 6")
    assert saved_steps(cut.checkpoints_dir)[-1] == 6
    assert_same_state(whole.run_dir, cut.run_dir, 6)


def test_early_stopping_without_evaluation_is_refused_with_a_remedy(records_dir, tmp_path):
    with pytest.raises(ValueError, match=r"early_stopping must be 0 with eval_steps=0; got 3\. R"):
        TrainConfig(early_stopping=3, eval_steps=0)
    run = begin_run(tmp_path / "run", read_manifest(records_dir), {**TINY, "early_stopping": 3})
    with pytest.raises(ValueError, match=r"must be 0 without evaluation; got 3\. Remedy: --mode="):
        loop.train(run, read_manifest(records_dir), quiet, evaluating=False)
    assert not run.run_dir.exists()
