"""The one object a notebook needs: train, evaluate, predict, export, bound to one run folder.

TensorFlow is imported by the methods that need it, after they have checked folders and options.
"""

# Long: two thirds are signatures and docstrings of the public API.

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mapseg.config import PredictConfig
from mapseg.data.manifest import Manifest, read_manifest
from mapseg.files import check_writable
from mapseg.inference.batching import one_frame, segment_frames
from mapseg.inference.export.formats import check_export_dir, choose_formats
from mapseg.labels import LabelSet, make_label_set
from mapseg.mapping import read_mapping
from mapseg.runs.checkpoints import find_checkpoint
from mapseg.runs.folder import Run, amend_run, check_classes, open_run
from mapseg.training.prepare import begin_run

if TYPE_CHECKING:
    from mapseg.evaluation.evaluation import Evaluation
    from mapseg.inference.predictor import Predictor, Segmentation


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
        self._loaded: tuple[Any, Predictor] | None = None

    @property
    def run(self) -> Run:
        """The run that the folder stores.

        Raises:
          FileNotFoundError: the folder has no run yet.
        """
        return open_run(self.run_dir)

    def amended(self, options: Mapping[str, Any]) -> Run:
        """Returns the stored run with changed options.

        Raises:
          FileNotFoundError: the folder has no run yet.
          ValueError: an option that must not change has another value.
        """
        return amend_run(self.run, options)

    def train(
        self,
        records_dir: Path | str,
        *,
        predicting: PredictConfig | None = None,
        evaluating: bool = True,
        stopping: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        """Trains to `steps`, or resumes the stored run; see `mapseg.training.loop.train`.

        Args:
          records_dir: a folder made by `data_prep.build_records`.
          predicting: how whole images are evaluated: scales, flip and tile size.
          evaluating: evaluate on `eval_split` every `eval_steps` and at the end.
          stopping: called after each step; if true, saves and returns.
          **options: fields of ModelConfig and TrainConfig; a later call needs only new values.

        Raises:
          FileNotFoundError: no such records, or the initial weights are unavailable.
          ValueError: an option is unknown, has a bad value, or must not change.
          FloatingPointError: the loss is not finite.
        """
        manifest = read_manifest(records_dir)
        run = begin_run(self.run_dir, manifest, options)

        from mapseg.training.loop import train

        train(
            run,
            manifest,
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
        mapping: str = "",
        details: bool = True,
        again: bool = True,
    ) -> "Evaluation":
        """Scores a checkpoint on a split; writes `evaluation/<split>.json`, tables and panels.

        Args:
          records_dir: a folder made by `data_prep.build_records`.
          split: empty is the run's `eval_split`.
          config: scales, flip and tile size.
          checkpoint: `best`, `latest` or a step.
          panels: number of pictures of image, prediction and ground truth to write.
          mapping: for records with other classes than the run's: name or path of a mapping to
            these, see `mapseg.mapping`; all their evaluated classes are scored.
          details: also count boundaries, regions and the calibration.
          again: if false, an earlier evaluation with the same inputs and options is reused.

        Raises:
          FileNotFoundError: no such run, checkpoint or records.
          ValueError: no such split, the records have other classes, or the mapping does not fit.
          WriteError: the run folder is not writable; checked before any image is scored.
        """
        run, config = self.run, config or PredictConfig()
        manifest = read_manifest(records_dir)
        label_set, translation, mapped = self._scored_classes(run, manifest, mapping)
        split = manifest.split(split or run.train.eval_split).name
        path = find_checkpoint(self.run_dir, checkpoint)

        from mapseg.evaluation import evaluate as evaluating
        from mapseg.evaluation import stored

        facts = {**evaluating.evaluation_facts(path, manifest, split, config), **mapped}
        json_path = stored.evaluation_path(self.run_dir, split, mapping)
        panels_dir = json_path.with_name(f"panels-{Path(mapping).stem}" if mapping else "panels")
        earlier = None if again else evaluating.matching_evaluation(json_path, label_set, facts)
        if earlier is not None and (earlier.has_details or not details):
            return earlier
        check_writable(json_path.parent)
        check_writable(panels_dir)
        evaluation = evaluating.evaluate(
            self._predictor(run, config, path),
            manifest,
            split,
            label_set,
            self._progress,
            details=details,
            translation=translation,
            panels_dir=panels_dir,
            panels=panels,
        )
        self._store(evaluation, json_path, facts)
        return evaluation

    def report(self, records_dir: Path | str, config: PredictConfig | None = None) -> Path:
        """Writes the report of the best checkpoint: `report/index.html` in the run folder.

        Its evaluation is reused if it has all details.

        Args:
          records_dir: a folder made by `data_prep.build_records`.
          config: scales, flip and tile size.

        Returns:
          The page.

        Raises:
          FileNotFoundError, ValueError, WriteError: as `evaluate`.
        """
        panels = self.run.train.eval_panels
        self.evaluate(records_dir, config=config, panels=panels, again=False)

        from mapseg.evaluation.report.write import write_report

        return write_report(self.run_dir, Path(records_dir), self._progress)

    @overload  # an array [B, H, W, 3] has no type of its own
    def predict(  # type: ignore[overload-overlap]
        self,
        frames: np.ndarray,
        config: PredictConfig | None = None,
        checkpoint: str = "best",
        *,
        probability: bool = False,
    ) -> "Segmentation": ...

    @overload
    def predict(
        self,
        frames: Iterable[np.ndarray],
        config: PredictConfig | None = None,
        checkpoint: str = "best",
        *,
        probability: bool = False,
    ) -> Iterator["Segmentation"]: ...

    def predict(
        self,
        frames: np.ndarray | Iterable[np.ndarray],
        config: PredictConfig | None = None,
        checkpoint: str = "best",
        *,
        probability: bool = False,
    ) -> "Segmentation | Iterator[Segmentation]":
        """Segments one frame, or any number of frames, each at its own size.

        Several frames are segmented while the returned iterator is read: consecutive ones of the
        same size together, as many as `infer_main.py` does by default (1 on a CPU, 8 on a GPU).
        Of an iterator no more frames than that are read ahead.

        Args:
          frames: one frame [H, W, 3] uint8 RGB; or several: an array [B, H, W, 3], a list, or any
            iterable, also an endless one, of frames whose sizes may differ.
          config: scales, flip and tile size.
          checkpoint: `best`, `latest` or a step.
          probability: also return the probability of each pixel's class, which takes longer.

        Returns:
          Of one frame the ids [H, W] uint8, the mean confidence, and the scale of the network's
          input; of several an iterator of these in the same order.

        Raises:
          FileNotFoundError: no such run or checkpoint.
          ValueError: a frame has another dtype or shape, or no pixels; of several, the iterator
            raises it after the results of the frames before.
        """
        frame = one_frame(frames)
        run, path = self.run, find_checkpoint(self.run_dir, checkpoint)
        predictor = self._predictor(run, config or PredictConfig(), path)
        if frame is None:
            return segment_frames(predictor, frames, probability=probability)
        return predictor.segment(frame, probability=probability)

    def export(
        self,
        export_dir: Path | str = "",
        config: PredictConfig | None = None,
        checkpoint: str = "best",
        *,
        formats: Sequence[str] = ("saved_model",),
        check_frames: str = "",
        records_dir: Path | str = "",
        split: str = "",
    ) -> Path:
        """Writes the network in formats for programs without mapseg.

        The ids of each format are compared with the predictor's on a few frames.

        Args:
          export_dir: a new or empty folder, or an old export; default `export` in the run folder.
          config: scales, flip and tile size, which are fixed in the export. Formats other than
            `saved_model` have one scale, and neither flip nor tiles.
          checkpoint: `best`, `latest` or a step.
          formats: names of `mapseg.inference.export.formats`.
          check_frames: frames to compare on: a folder, glob, list or video.
          records_dir: records whose images are used without `check_frames`; without both, scripted
            pictures are. Formats with integers are calibrated and scored on them.
          split: of the records, for checking and scoring; empty is the run's `eval_split`.

        Returns:
          The folder of the export.

        Raises:
          FileNotFoundError: no such run, checkpoint, frames or records.
          ValueError: the folder holds other files, a format is unknown, does not support an option
            or lacks a package, the frames show a single class, or ids differ.
          WriteError: the export cannot be written.
        """
        run, path = self.run, find_checkpoint(self.run_dir, checkpoint)
        if split:
            run = self.amended({"eval_split": split})
        export_dir, config = Path(export_dir or self.run_dir / "export"), config or PredictConfig()
        chosen = choose_formats(formats, config, records_dir)
        check_export_dir(export_dir)
        check_writable(export_dir.parent)

        from mapseg.evaluation.exported import rounding_options
        from mapseg.inference.export.check_frames import read_check_frames
        from mapseg.inference.export.source import Source
        from mapseg.inference.export.write import export

        frames = read_check_frames(run, check_frames, Path(records_dir) if records_dir else None)
        source = Source(run, path, config)
        rounding = rounding_options(source, chosen, records_dir, self._progress)
        return export(source, export_dir, chosen, frames, self._progress, **rounding)

    @staticmethod
    def _scored_classes(
        run: Run, manifest: Manifest, mapping: str
    ) -> tuple[LabelSet, np.ndarray | None, dict[str, str]]:
        """Returns the classes of an evaluation, the table to their ids, and facts about it."""
        if not mapping:
            check_classes(run, manifest.classes, manifest.records_dir)
            return run.label_set, None, {}
        used = read_mapping(mapping)
        label_set = make_label_set(manifest.classes, "all")
        table = used.translation(run.label_set.names, label_set)
        return label_set, table, {"mapping": used.digest}

    def _store(self, evaluation: "Evaluation", path: Path, facts: dict[str, Any]) -> None:
        """Writes an evaluation; if that fails, prints the scores, which are too costly to lose."""
        from mapseg.evaluation import stored
        from mapseg.evaluation.summary import summary_lines

        try:
            stored.write_evaluation(path, evaluation, facts)
        except OSError:
            self._progress("\n".join(summary_lines(evaluation)))
            raise

    def _predictor(self, run: Run, config: PredictConfig, path: Path) -> "Predictor":
        """Returns a predictor; the last one is cached, so that single frames do not reload it.

        The weights file's state is compared, as a run may be retrained to the same step.
        """
        weights_path = path / "weights.npz"
        facts = weights_path.stat() if weights_path.is_file() else None
        file = facts and (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino)
        if self._loaded is None or self._loaded[0] != (config, path, file):
            from mapseg.inference.predictor import load_predictor

            self._loaded = (config, path, file), load_predictor(run, config, path)
        return self._loaded[1]
