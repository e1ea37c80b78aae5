"""Reports and records a training run: progress lines, history, TensorBoard, loss.png."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from mapseg.charts import plot_history
from mapseg.confusion_chart import draw_confusion
from mapseg.evaluation.scores import Scores
from mapseg.files import whole_file
from mapseg.progress import duration
from mapseg.runs.folder import Run
from mapseg.runs.history import append_history, cut_history, read_history
from mapseg.training.optimizers import learning_rate

_PLOT_SECS = 60  # between two drawings of loss.png, each of which takes half a second


class Journal:
    """Reports and records the progress of a run; only the first process writes files."""

    def __init__(self, run: Run, progress: Callable[[str], None], *, is_first: bool, step: int):
        """Removes all records after the step that the run resumes from.

        Args:
          run: its options and its folder.
          progress: receives progress lines.
          is_first: whether this process writes files.
          step: the step at which the run starts or resumes.
        """
        self._run, self._progress, self._is_first = run, progress, is_first
        self.rows = cut_history(run.history_path, step) if is_first else []
        if is_first:
            cut_events(run.run_dir / "tensorboard", step)
            self._events = tf.summary.create_file_writer(str(run.run_dir / "tensorboard"))
        self._plotted_at, self._plotted_rows = time.monotonic(), 0
        self.start_clock(step)

    def start_clock(self, step: int) -> None:
        """Starts timing the steps after this one."""
        self._timed_at, self._timed_step = time.monotonic(), step

    def leave_out(self, secs: float) -> None:
        """Excludes from the timing seconds that were not spent on steps."""
        self._timed_at += secs

    def log(self, step: int, facts: Mapping[str, float]) -> None:
        """Reports and records the steps since the last report.

        Args:
          step: the last of these steps.
          facts: their mean `loss`, and other columns of the history.
        """
        config, now = self._run.train, time.monotonic()
        rate = learning_rate(config, tf.constant(step - 1, tf.int64))
        row = {"step": step, **facts, "learning_rate": float(rate)}
        text = f"loss {row['loss']:.4f}  rate {row['learning_rate']:.2e}"
        if step > self._timed_step:  # otherwise only the first step, which also compiles
            steps_per_s = (step - self._timed_step) / (now - self._timed_at)
            row["images_per_s"] = steps_per_s * config.batch_size
            left = duration((config.steps - step) / steps_per_s)
            text += f"  {row['images_per_s']:.1f} images/s  {left} left"
        self.record(row)
        self._progress(f"step {step}/{config.steps}  {text}")
        self._timed_at, self._timed_step = now, step
        if now - self._plotted_at > _PLOT_SECS:
            self.plot()

    def record(self, row: Mapping[str, float]) -> None:
        """Adds a row to the history and to TensorBoard's events; `step` is one of its columns."""
        if not self._is_first:
            return
        append_history(self._run.history_path, row)
        with self._events.as_default(step=int(row["step"])):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self._events.flush()

    def show_evaluation(self, step: int, scores: Scores, panels: Mapping[str, np.ndarray]) -> None:
        """Adds an evaluation to TensorBoard's events: IoU by class, confusion matrix, panels.

        Args:
          step: the evaluated step.
          scores: its scores; classes not present are left out.
          panels: pictures by the name of their sample, [h, w, 3] uint8 each.
        """
        if not self._is_first:
            return
        names = scores.label_set.names
        with self._events.as_default(step=step):
            for i in np.flatnonzero(scores.present):
                tf.summary.scalar(f"iou/{names[i]}", scores.iou[i])
            pictures = {f"panels/{name}": picture for name, picture in panels.items()}
            pictures["confusion"] = draw_confusion(scores.confusion, names)
            for tag, picture in pictures.items():
                tf.summary.image(tag, picture[np.newaxis])
        self._events.flush()

    def plot(self) -> None:
        """Redraws `loss.png` if the history has new rows."""
        self._plotted_at = time.monotonic()
        if not self._is_first:
            return
        rows = read_history(self._run.history_path)
        if len(rows) > self._plotted_rows:
            self._plotted_rows = len(rows)
            plot_history(rows, self._run.run_dir / "loss.png", self._run.train.loss_smoothing)


def cut_events(folder: Path, last_step: int) -> None:
    """Removes TensorBoard's events after a step; a resumed run writes them again."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept_records, must_rewrite = [], False
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                if tf.compat.v1.Event.FromString(record).step <= last_step:
                    kept_records.append(record)
                else:
                    must_rewrite = True
        except tf.errors.DataLossError:  # the process was killed while it wrote the last record
            must_rewrite = True
        if must_rewrite:
            with whole_file(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
                for record in kept_records:
                    writer.write(record)
