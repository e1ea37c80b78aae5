"""The one object a notebook needs: train, evaluate, predict, export, bound to one run folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.config import PredictConfig, to_json
from mapseg.data.manifest import read_manifest
from mapseg.evaluation import evaluate as evaluation
from mapseg.evaluation.scores import Scores
from mapseg.inference import export as exporting
from mapseg.inference.infer import Segmentation, segment_frame
from mapseg.inference.predictor import Predictor, load_predictor
from mapseg.runs import checkpoints
from mapseg.runs.checkpoints import Run
from mapseg.training import loop as training


class Estimator:
    """Trains, evaluates, predicts and exports in one run folder.

    Example::

        estimator = Estimator("runs/first")
        estimator.train("records", encoder="mobilenet_v2", steps=1000)
        print(estimator.evaluate("records").mean_iou)
        ids = estimator.predict(frame).ids
    """

    def __init__(self, run_dir: Path | str, progress: Callable[[str], None] = print):
        """Binds to a run folder, which need not exist before `train`."""
        self.run_dir = Path(run_dir)
        self._progress = progress
        self._loaded: tuple[PredictConfig, Path, Predictor] | None = None

    @property
    def run(self) -> Run:
        """What the folder is bound to.

        Raises:
          FileNotFoundError: nothing was trained here yet.
        """
        return checkpoints.open_run(self.run_dir)

    def amended(self, options: Mapping[str, Any]) -> Run:
        """The stored run with options of a later call.

        Raises:
          FileNotFoundError: nothing was trained here yet.
          ValueError: an option that makes the run what it is has another value.
        """
        return checkpoints.amend_run(self.run, options)

    def train(
        self,
        records_dir: Path | str,
        *,
        predicting: PredictConfig | None = None,
        evaluating: bool = True,
        stopping: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        """Trains to `steps`, or goes on with what was begun; see `mapseg.training.loop.train`.

        Args:
          records_dir: a folder made by `data_prep.build_records`.
          predicting: how whole images are evaluated: scales, flip and tile size.
          evaluating: evaluate on `eval_split` every `eval_steps` and at the end.
          stopping: asked after each step; where true, saves and returns.
          **options: fields of ModelConfig and TrainConfig; a later call needs only what it changes.
        """
        run = training.begin_run(self.run_dir, Path(records_dir), options)
        training.train(
            run,
            Path(records_dir),
            self._progress,
            predicting=predicting,
            evaluating=evaluating,
            stopping=stopping,
        )

    def evaluate(
        self,
        records_dir: Path | str,
        split: str = "",
        config: PredictConfig | None = None,
        checkpoint: str = "best",
        panels: int = 8,
        *,
        again: bool = True,
    ) -> Scores:
        """Scores a checkpoint on a split and writes `evaluation/<split>.json` and panels.

        Args:
          records_dir: a folder made by `data_prep.build_records`.
          split: empty is the run's `eval_split`.
          config: scales, flip and tile size.
          checkpoint: `best`, `latest` or a step.
          panels: how many pictures of image, prediction and ground truth are written.
          again: where false, an earlier evaluation of the very same is read instead.

        Raises:
          FileNotFoundError: no such run, checkpoint or records.
          ValueError: no such split, or records of other classes.
        """
        run, config = self.run, config or PredictConfig()
        manifest = read_manifest(Path(records_dir))
        checkpoints.check_classes(run, manifest.classes, Path(records_dir))
        split = split or run.train.eval_split
        facts = {
            "checkpoint": checkpoints.find_checkpoint(self.run_dir, checkpoint).name,
            "records_digest": manifest.split(split).digest,
            **to_json(config),
        }
        if not again:
            stored = evaluation.read_evaluation(self.run_dir, split, run.label_set, **facts)
            if stored is not None:
                return stored
        scores = evaluation.evaluate(
            self._predictor(run, config, checkpoint),
            Path(records_dir),
            split,
            run.label_set,
            self._progress,
            panels_dir=self.run_dir / "evaluation" / "panels",
            panels=panels,
        )
        evaluation.write_evaluation(self.run_dir, split, scores, **facts)
        return scores

    def predict(
        self, frame: np.ndarray, config: PredictConfig | None = None, checkpoint: str = "best"
    ) -> Segmentation:
        """Segments one frame [H, W, 3] uint8 RGB; ids come at its own size."""
        predictor = self._predictor(self.run, config or PredictConfig(), checkpoint)
        return segment_frame(predictor, frame)

    def export(
        self,
        export_dir: Path | str = "",
        config: PredictConfig | None = None,
        checkpoint: str = "best",
    ) -> Path:
        """Writes a SavedModel, by default to `export` in the run folder; returns its folder."""
        run = self.run
        predictor = load_predictor(run, config or PredictConfig(), checkpoint)
        return exporting.export(run, predictor, Path(export_dir or self.run_dir / "export"))

    def _predictor(self, run: Run, config: PredictConfig, checkpoint: str) -> Predictor:
        """Keeps the last network, so that frames one by one do not load it again."""
        path = checkpoints.find_checkpoint(self.run_dir, checkpoint)
        if self._loaded is None or self._loaded[:2] != (config, path):
            self._loaded = (config, path, load_predictor(run, config, checkpoint))
        return self._loaded[2]
