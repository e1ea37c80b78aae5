"""Evaluates a run during training."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.config import PredictConfig
from mapseg.data.manifest import Manifest
from mapseg.evaluation.changes import describe_changes
from mapseg.evaluation.evaluate import evaluate, evaluation_facts, matching_evaluation
from mapseg.evaluation.evaluation import Evaluation
from mapseg.evaluation.scores import Scores
from mapseg.evaluation.stored import evaluation_path, write_evaluation
from mapseg.inference.predictor import Predictor
from mapseg.model.deeplab import build_model
from mapseg.model.network import live_network
from mapseg.model.weights import assign_weight_arrays, weight_arrays
from mapseg.pictures import shrink
from mapseg.runs.checkpoints import Best, find_checkpoint, note_score
from mapseg.runs.folder import Run
from mapseg.training.devices import Workers
from mapseg.training.early_stopping import find_early_end
from mapseg.training.journal import Journal
from mapseg.training.saving import Saver
from mapseg.training.state import TrainState

# In TensorBoard's events, which keep the pictures of all evaluations.
_EVENT_PANELS, _EVENT_PANEL_PX = 4, 1024


class Validator:
    """Evaluates a run every `eval_steps` and at its end, and keeps the best checkpoint.

    All processes must call it at the same steps, and split the images.

    Attributes:
      early_end: why the run ends early, if it does; known to the first process only.
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        state: TrainState,
        workers: Workers,
        predicting: PredictConfig,
        progress: Callable[[str], None],
        add_up: Callable[[np.ndarray], np.ndarray],
        scores: Mapping[int, float],
    ):
        """Binds to a run.

        Args:
          run: its options and its folder.
          manifest: the manifest of the records.
          state: contains the network to evaluate.
          workers: the processes and devices.
          predicting: how whole images are evaluated.
          progress: receives progress lines.
          add_up: sums arrays over all processes.
          scores: mean IoU of earlier evaluations, by step; known to the first process only.
        """
        self._run, self._manifest, self._workers = run, manifest, workers
        self._state, self._progress, self._add_up = state, progress, add_up
        self._scores = {**scores}
        self.early_end = find_early_end(run, self._scores)
        self._model = state.model
        if workers.replicas > 1:  # a copy: the network itself is on several devices
            config = replace(run.model, encoder_weights="none")
            classes = len(run.label_set.classes)
            self._model = build_model(config, classes, precision=run.train.precision)
        self._predictor = Predictor(live_network(self._model), predicting, run.long_side_px)

    def run_if_due(self, step: int, saver: Saver, journal: Journal) -> None:
        """Saves and evaluates if an evaluation is due at this step and not yet done."""
        config = self._run.train
        last = step == config.steps
        due = last or (config.eval_steps and step and step % config.eval_steps == 0)
        if not due:
            return
        [done] = self._add_up(np.array([step in self._scores], np.float64))
        if done:
            return
        started = time.monotonic()
        saver.save(step)
        if self._model is not self._state.model:
            assign_weight_arrays(self._model, weight_arrays(self._state.model))
        is_first = self._workers.is_first
        panels: dict[str, np.ndarray] = {}

        def keep(name: str, picture: np.ndarray) -> None:
            if len(panels) < _EVENT_PANELS:
                panels[name] = shrink(picture, _EVENT_PANEL_PX)

        scores = evaluate(
            self._predictor,
            self._manifest,
            config.eval_split,
            self._run.label_set,
            self._progress,
            max_samples=config.eval_samples,
            panels_dir=self._run.run_dir / "evaluation" / "panels" if is_first else None,
            panels=config.eval_panels,
            on_panel=keep,
            share=(self._workers.index, self._workers.count),
            add_up=self._add_up,
        )
        self._scores[step] = scores.mean_iou
        if is_first:
            self._note(step, scores, panels, journal)
        journal.leave_out(time.monotonic() - started)

    def _note(
        self, step: int, scores: Evaluation, panels: Mapping[str, np.ndarray], journal: Journal
    ) -> None:
        run, config = self._run, self._run.train
        facts = evaluation_facts(
            find_checkpoint(run.run_dir, str(step)),
            self._manifest,
            config.eval_split,
            self._predictor.config,
            config.eval_samples,
        )
        path = evaluation_path(run.run_dir, config.eval_split)
        changes = self._changes(step, scores, path, facts)
        write_evaluation(path, scores, facts)
        images = config.eval_split, config.eval_samples
        measured = hashlib.sha256(json.dumps(_conditions(facts)).encode()).hexdigest()[:16]
        note_score(run.checkpoints_dir, Best(step, scores.mean_iou, *images, measured))
        self.early_end = find_early_end(run, self._scores)
        journal.show_evaluation(step, scores, panels)
        # Last: the row marks the evaluation as done.
        totals = {"mean_iou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy}
        journal.record({"step": step, **totals})
        self._progress(
            f"step {step}: {config.eval_split} mean IoU {scores.mean_iou:.2%}, "
            f"pixel accuracy {scores.pixel_accuracy:.2%}"
        )
        if changes:
            self._progress(f"step {step}: {changes}")
        journal.plot()

    def _changes(self, step: int, scores: Scores, path: Path, facts: Mapping[str, Any]) -> str:
        """Describes the changes since the run's previous evaluation, if the folder still has it.

        An evaluation of other images or with other options is not comparable; the facts differ.
        """
        previous_step = max((other for other in self._scores if other < step), default=None)
        comparable = {**_conditions(facts), "step": previous_step}
        before = matching_evaluation(path, self._run.label_set, comparable)
        return "" if before is None else describe_changes(before, scores)


def _conditions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that evaluations must share for their scores to be compared."""
    return {k: v for k, v in facts.items() if k not in ("step", "checkpoint", "weights_sha256")}
