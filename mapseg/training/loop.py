"""The loop around the training step: batches, reports, checkpoints, evaluations."""

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mapseg
from mapseg.config import ModelConfig, PredictConfig, TrainConfig, to_json
from mapseg.data.batches import batch_keys, train_batches
from mapseg.data.manifest import read_manifest
from mapseg.evaluation.evaluate import evaluate, write_evaluation
from mapseg.evaluation.scores import Scores
from mapseg.files import whole_file
from mapseg.inference.predictor import Predictor
from mapseg.labels import make_label_set
from mapseg.machine import cores, gpus, has_nvidia_driver
from mapseg.model.deeplab import assign_weight_arrays, build_model, weight_arrays
from mapseg.model.encoders import resolve_encoder_weights
from mapseg.pictures import plot_history
from mapseg.progress import duration, telling
from mapseg.runs import checkpoints
from mapseg.runs.checkpoints import Run
from mapseg.training import optimizers
from mapseg.training.devices import (
    Workers,
    check_batch_norm,
    find_cluster,
    join,
    make_sum,
    share_batches,
)
from mapseg.training.step import (
    Steps,
    TrainState,
    build_state,
    make_averaging,
    make_step,
    make_steps,
    steps_per_call,
    use_xla,
)

Progress = Callable[[str], None]

_MOST_SKIPPED_IN_A_ROW = 20
# What TensorFlow says, in errors of many kinds, where another process cannot be reached any more.
_LOST = re.compile(r"job:worker|task:\d|heartbeat|[Cc]ollective|NCCL|[Ss]ocket|[Cc]onnection")


def begin_run(run_dir: Path, records_dir: Path, options: Mapping[str, Any]) -> Run:
    """Opens a run folder with a later call's options, or makes it.

    Args:
      run_dir: where; a new folder, an empty one, or one that this function made before.
      records_dir: a folder made by `data_prep.build_records`.
      options: fields of ModelConfig and TrainConfig that the user gave.

    Returns:
      The run, stored.

    Raises:
      FileNotFoundError: no records, or not what `options` name.
      ValueError: an unknown option, a bad value, or one that would make another run of it.
    """
    model_options, train_options = split_options(options)
    manifest = read_manifest(records_dir)
    if checkpoints.saved_steps(run_dir / "checkpoints"):
        run = checkpoints.amend_run(checkpoints.open_run(run_dir), options)
        checkpoints.check_classes(run, manifest.classes, records_dir)
        if manifest.split(run.train.train_split).digest != run.records_digest:
            raise ValueError(
                f"{records_dir}: a run must go on with the records that it began with; those of "
                f"{run_dir} were others. Remedy: give the same --records_dir, or start another "
                f"--run_dir with --init_from={run_dir}"
            )
    else:  # new, or ended before its first checkpoint: then nothing is lost by other options
        check_new(run_dir)
        train = TrainConfig(**train_options)
        train = replace(
            train,
            precision=resolve_precision(train.precision),
            schedule_steps=train.schedule_steps or train.steps,
        )
        split = manifest.split(train.train_split)
        run = Run(
            run_dir,
            ModelConfig(**model_options),
            train,
            make_label_set(manifest.classes, train.label_set),
            split.long_side_px,
            manifest.classes,
            split.digest,
        )
    return run


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sorts option values into those of ModelConfig and those of TrainConfig.

    Raises:
      ValueError: a name that neither has.
    """
    names = [{f.name for f in fields(kind)} for kind in (ModelConfig, TrainConfig)]
    unknown = sorted(set(options) - names[0] - names[1])
    if unknown:
        raise ValueError(
            f"options must be fields of ModelConfig or TrainConfig; got {', '.join(unknown)}"
        )
    model, train = ({k: v for k, v in options.items() if k in known} for known in names)
    return model, train


def check_new(run_dir: Path) -> None:
    """Refuses a folder for a new run that holds something else.

    Raises:
      ValueError: files and no config.json.
    """
    names = {p.name for p in run_dir.iterdir()} if run_dir.exists() else set()
    strangers = sorted(names - {".lock"})
    if strangers and "config.json" not in names:
        raise ValueError(
            f"{run_dir}: a new run's folder must be empty; it holds {', '.join(strangers[:3])} and "
            "no config.json. Remedy: give another --run_dir"
        )


def resolve_precision(asked: str) -> str:
    """Says what `auto` is here: bfloat16 where every GPU has its arithmetic, else float32."""
    if asked != "auto":
        return asked
    found = gpus()
    # bfloat16 arithmetic came with compute capability 8.0.
    if found and all(gpu.capability >= (8, 0) for gpu in found):
        return "mixed_bfloat16"
    return "float32"


def describe(run: Run, state: TrainState, samples: int, workers: Workers) -> list[str]:
    """Says what is about to be trained, on what, and how long it is."""
    names = ", ".join(gpu.name for gpu in gpus())
    devices = names or f"CPU ({cores()} cores)"
    if workers.count > 1:
        devices += f" on this worker, {workers.replicas} devices on {workers.count} workers"
    parameters = sum(math.prod(v.shape) for v in state.model.trainable_variables)
    epochs = run.train.steps * run.train.batch_size / samples
    start = run.train.init_from or resolve_encoder_weights(run.model)
    lines = [
        f"run folder {run.run_dir}",
        f"devices: {devices}; precision {run.train.precision}; "
        f"XLA {'on' if use_xla(run.train, workers.strategy) else 'off'}",
        f"{run.model.encoder} from {start}, "
        f"output stride {run.model.output_stride}, {parameters / 1e6:.2f} M trained parameters, "
        f"{len(run.label_set.classes)} classes ({run.label_set.name})",
        f"{samples} samples, {run.train.steps} steps of {run.train.batch_size} crops of "
        f"{run.train.crop_height}x{run.train.crop_width}: {epochs:.1f} epochs",
    ]
    if run.model.encoder_weights == "auto" and start == "none":
        lines.append(
            f"NOTE: there are no ImageNet weights of {run.model.encoder}: it starts at random"
        )
    warmup, end = run.train.warmup_steps, run.train.schedule_steps or run.train.steps
    if warmup >= end:
        lines.append(
            f"WARNING: warmup_steps={warmup} of a schedule of {end} steps: the rate only rises. "
            "Remedy: fewer --warmup_steps"
        )
    if not names and has_nvidia_driver():
        lines.append(
            "WARNING: this machine has an NVIDIA GPU that TensorFlow cannot see; training runs on "
            "the CPU, tens of times slower. Remedy: pip install 'mapseg[cuda]', and check the "
            "driver with nvidia-smi"
        )
    return lines


def train(
    run: Run,
    records_dir: Path,
    progress: Progress,
    *,
    predicting: PredictConfig | None = None,
    evaluating: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Trains a run to `run.train.steps`, from its newest checkpoint if it has one.

    Args:
      run: from `begin_run`.
      records_dir: a folder made by `data_prep.build_records`.
      progress: takes lines for people.
      predicting: how whole images are evaluated.
      evaluating: evaluate every `eval_steps` and at the end, and keep the best checkpoint.
      stopping: asked after each step; where true, the run is saved and the function returns.

    Raises:
      FileNotFoundError: records or initial weights that are not there.
      ValueError: a checkpoint that does not fit, or a split that does not exist.
      FloatingPointError: the loss is not finite.
    """
    found = find_cluster(run.train)
    is_first = found is None or found.index == 0
    with checkpoints.locked(run.run_dir) if is_first else nullcontext():
        if _is_finished(run, evaluating):
            if is_first:
                checkpoints.store_run(run)
            progress(f"nothing to do: {run.run_dir} is finished at step {run.train.steps}")
            return
        predicting = predicting or PredictConfig()
        greeting = _greeting(run, predicting, evaluating)
        workers = join(run.train, greeting, progress, stopping)
        if workers is None:
            progress("stopped while other workers were missing; nothing was begun")
            return
        check_batch_norm(run.train, workers.replicas)
        loop = _Loop(run, records_dir, progress, evaluating, predicting, workers)
        try:
            loop.go(stopping)
        except tf.errors.OpError as error:
            if workers.count == 1 or not _LOST.search(str(error)):
                raise
            raise ConnectionError(_lost_worker(run, str(error))) from error


def _greeting(run: Run, predicting: PredictConfig, evaluating: bool) -> dict[str, str]:
    """What all workers of a run must have in common."""
    saved = checkpoints.saved_steps(run.checkpoints_dir)
    versions = (mapseg.__version__, tf.__version__, keras.__version__)
    options = {**to_json(predicting), **to_json(run.model), **to_json(run.train)}
    return {
        "GPUs": str(len(gpus())),
        "evaluating": str(evaluating),
        "versions of mapseg, TensorFlow and Keras": ", ".join(versions),
        "records": run.records_digest,
        "newest checkpoint": str(saved[-1] if saved else None),
        **{name: str(value) for name, value in options.items()},
    }


def _lost_worker(run: Run, reported: str) -> str:
    task = re.search(r"task:(\d+)", reported)
    who = f"worker {task[1]}" if task else "a worker"
    saved = checkpoints.saved_steps(run.checkpoints_dir)
    again = f"go on from step {saved[-1]}" if saved else "begin anew: nothing was saved yet"
    return (
        f"{who} has ended or cannot be reached any more; training cannot go on without it. Remedy: "
        f"see what it says, and start all workers again with the same command: they {again}"
    )


def _is_finished(run: Run, evaluating: bool) -> bool:
    steps, saved = run.train.steps, checkpoints.saved_steps(run.checkpoints_dir)
    if saved and steps < saved[-1]:
        raise ValueError(
            f"{run.run_dir}: steps must not be below the saved ones; got {steps}. "
            "Remedy: leave --steps out, or give another --run_dir"
        )
    if steps not in saved:
        return False
    history = checkpoints.read_history(run.history_path)
    return not evaluating or any("mean_iou" in r and r["step"] == steps for r in history)


def _silent(_: str) -> None:
    """Says nothing: worker 0 speaks for all."""


class _Loop:
    """One call's work on a run folder: what `train` needs from step to step."""

    def __init__(
        self,
        run: Run,
        records_dir: Path,
        progress: Progress,
        evaluating: bool,
        predicting: PredictConfig,
        workers: Workers,
    ):
        manifest = read_manifest(records_dir)
        split = manifest.split(run.train.train_split)
        self.samples = split.samples
        self.class_pixels = run.label_set.count(split.pixels, run.source_classes)
        if evaluating:
            manifest.split(run.train.eval_split)
        self.run, self.records_dir, self.evaluating = run, records_dir, evaluating
        self.workers, self.is_first = workers, workers.index == 0
        self.progress = progress if self.is_first else _silent
        self.add_up = make_sum(workers)
        saved = checkpoints.saved_steps(run.checkpoints_dir)
        with workers.strategy.scope():
            self.state = build_state(run, self.progress, fresh=not saved)
        # Only now: a run whose first weights cannot be had leaves no folder behind.
        if self.is_first:
            checkpoints.store_run(run)
        if saved:
            checkpoints.read_state(
                checkpoints.find_checkpoint(run.run_dir, "latest"), self.state.checkpoint
            )
        alike = run.train.sync_batch_norm or run.train.batch_norm == "frozen"
        self.average = None
        if workers.replicas > 1 and not alike:
            self.average = make_averaging(self.state, workers.strategy)
        self.step = int(self.state.step.numpy())
        self.saved_step = saved[-1] if saved else -1
        self.saved_at = self.timed_at = time.monotonic()
        self.timed_step = self.step
        history = []
        if self.is_first:
            history = checkpoints.cut_history(run.history_path, self.step)
            self.events = tf.summary.create_file_writer(str(run.run_dir / "tensorboard"))
        self.evaluated_steps = {int(r["step"]) for r in history if "mean_iou" in r}
        self.skipped = int(max((r.get("skipped_steps", 0) for r in history), default=0))
        self.skipped_in_a_row = 0
        self.losses: list[float] = []  # of the finite steps since the last report
        self.pending: list[tuple[tf.Tensor, tf.Tensor]] = []  # not yet asked of the device
        self.predictor = self._make_predictor(predicting)

    def _make_predictor(self, predicting: PredictConfig) -> Predictor:
        """Predicts with the network itself, or where that lies on many devices with a copy."""
        model = self.state.model
        if self.workers.replicas > 1 and self.evaluating:
            config = replace(self.run.model, encoder_weights="none")
            classes = len(self.run.label_set.classes)
            model = build_model(config, classes, precision=self.run.train.precision)
        return Predictor(model, predicting, self.run.long_side_px)

    def go(self, stopping: Callable[[], bool]) -> None:
        config = self.run.train
        for line in describe(self.run, self.state, self.samples, self.workers):
            self.progress(line)
        if self.step:
            self.progress(f"going on from step {self.step}")
        step = make_step(self.state, config, self.workers.strategy, self.class_pixels)
        steps = make_steps(step)
        batches = iter(share_batches(self.workers, self.records_dir, config, self.step))
        self._evaluate_if_due()
        began = self.step
        while self.step < config.steps:
            stop, save = self._agree(stopping(), self._save_is_late())
            if save:
                self.save()
            if stop:
                break
            if self.step == began:
                with telling("compiling the training step", self.progress):
                    self._take(steps, batches, 1)
                    self.pending[0][0].numpy()  # waits
                self.timed_at, self.timed_step = time.monotonic(), self.step
            else:
                self._take(steps, batches, min(steps_per_call(config), self._steps_until_due()))
            if self.step % config.log_steps == 0 or self.step == config.steps:
                self._log()
            if config.checkpoint_steps and self.step % config.checkpoint_steps == 0:
                self.save()
            self._evaluate_if_due()
            if self.step % config.plot_steps == 0:
                self._plot()
        self.save()
        self._plot()
        self._agree(False)  # all wait until all is written
        if self.step < config.steps:
            self.progress(f"stopped and saved at step {self.step}; the same command goes on")
        else:
            self.progress(f"finished at step {self.step}: {self.run.run_dir}")

    def _take(self, steps: Steps, batches: Iterator[Any], count: int) -> None:
        self.pending.append(steps(batches, tf.constant(count)))
        self.step += count

    def _steps_until_due(self) -> int:
        """How many steps there are to the next that something is done after."""
        config = self.run.train
        periods = (config.log_steps, config.checkpoint_steps, config.eval_steps, config.plot_steps)
        waits = [period - self.step % period for period in periods if period]
        return min(*waits, config.steps - self.step)

    def _agree(self, *wishes: bool) -> list[bool]:
        """Says which of some wishes any worker has: all must do the same at the same step."""
        return [bool(count) for count in self.add_up(np.array(wishes, np.float64))]

    def save(self) -> None:
        """Writes a checkpoint of the present step, unless there is one."""
        if self.saved_step != self.step:
            self._collect()  # a step that was not finite is told before it is history
            if self.average is not None:
                self.average()
            weights = weight_arrays(self.state.model)
            if self.is_first:
                checkpoints.write_checkpoint(
                    self.run.checkpoints_dir,
                    self.step,
                    self.state.checkpoint,
                    weights,
                    self.run.train.keep_checkpoints,
                )
            else:  # what workers have between them is written by all or by none
                with tempfile.TemporaryDirectory() as folder:
                    self.state.checkpoint.write(f"{folder}/state")
            self.saved_step = self.step
        self.saved_at = time.monotonic()

    def _save_is_late(self) -> bool:
        waited = time.monotonic() - self.saved_at
        return self.is_first and 0 < self.run.train.checkpoint_secs <= waited

    def _collect(self) -> None:
        """Takes in the steps that were made; this is where the host waits for the device.

        Raises:
          FloatingPointError: see `_tell_not_finite`.
        """
        if not self.pending:
            return
        losses, finite = (np.concatenate([p[i] for p in self.pending]) for i in range(2))
        self.pending = []
        self.losses += losses[finite].tolist()
        for sound in finite:
            self.skipped_in_a_row = 0 if sound else self.skipped_in_a_row + 1
        self.skipped += int(np.sum(~finite))
        # Else the loss scale will mend it.
        if not finite.all() and float(self.state.loss_scale.scale.numpy()) <= 1:
            self._tell_not_finite(self.step - len(finite) + int(np.argmin(finite)))

    def _log(self) -> None:
        """Reports the steps since the last report."""
        self._collect()
        config, now = self.run.train, time.monotonic()
        row = {
            "step": self.step,
            "loss": float(np.mean(self.losses)) if self.losses else math.nan,
            "learning_rate": float(optimizers.learning_rate(config, self.state.step - 1)),
            "loss_scale": float(self.state.loss_scale.scale.numpy()),
            "skipped_steps": self.skipped,
        }
        text = f"loss {row['loss']:.4f}  rate {row['learning_rate']:.2e}"
        if self.step > self.timed_step:  # else only the step that was compiled, which says nothing
            steps_per_s = (self.step - self.timed_step) / (now - self.timed_at)
            row["images_per_s"] = steps_per_s * config.batch_size
            left = duration((config.steps - self.step) / steps_per_s)
            text += f"  {row['images_per_s']:.1f} images/s  {left} left"
        self._record(row)
        self.progress(f"step {self.step}/{config.steps}  {text}")
        self.losses, self.timed_at, self.timed_step = [], now, self.step

    def _tell_not_finite(self, step: int) -> None:
        """Writes the batch of a step that was not finite; tells or stops.

        Raises:
          FloatingPointError: as `on_nan` asks, or because too many steps in a row were not finite.
        """
        config = self.run.train
        path = self.run.run_dir / "not_finite" / f"step-{step:08d}.npz"
        keys = batch_keys(self.records_dir, config, step)
        if self.is_first:
            image, label = next(train_batches(self.records_dir, config, step).as_numpy_iterator())
            with whole_file(path) as partial:
                np.savez(partial, image=image, label=label, keys=keys)
        told = (
            f"the loss or a gradient of step {step} is not finite; no variable was changed by it. "
            f"Its samples: {', '.join(keys)}; its batch: {path}"
        )
        if config.on_nan == "skip" and self.skipped_in_a_row < _MOST_SKIPPED_IN_A_ROW:
            self.progress(f"skipped: {told}")
            return
        row = f" (nor are {self.skipped_in_a_row} in a row)" if self.skipped_in_a_row > 1 else ""
        raise FloatingPointError(
            f"{told}{row}. Remedy: a lower --learning_rate, some --warmup_steps, or "
            "--precision=float32; --on_nan=skip goes on without single such steps"
        )

    def _evaluate_if_due(self) -> None:
        config = self.run.train
        last = self.step == config.steps
        due = last or (config.eval_steps and self.step and self.step % config.eval_steps == 0)
        if not self.evaluating or not due:
            return
        [done] = self._agree(self.step in self.evaluated_steps)  # worker 0 has the history
        if done:
            return
        started = time.monotonic()
        self.save()
        if self.predictor.model is not self.state.model:
            assign_weight_arrays(self.predictor.model, weight_arrays(self.state.model))
        scores = evaluate(
            self.predictor,
            self.records_dir,
            config.eval_split,
            self.run.label_set,
            self.progress,
            max_samples=config.eval_samples,
            panels_dir=self.run.run_dir / "evaluation" / "panels" if self.is_first else None,
            panels=config.eval_panels if last else 0,
            share=(self.workers.index, self.workers.count),
            add_up=self.add_up,
        )
        self.evaluated_steps.add(self.step)
        self.timed_at += time.monotonic() - started  # an evaluation's time is not the training's
        if self.is_first:
            self._note_scores(scores)

    def _note_scores(self, scores: Scores) -> None:
        config = self.run.train
        write_evaluation(
            self.run.run_dir,
            config.eval_split,
            scores,
            step=self.step,
            samples=config.eval_samples,
            **to_json(self.predictor.config),
        )
        checkpoints.note_score(
            self.run.checkpoints_dir,
            checkpoints.Best(self.step, scores.mean_iou, config.eval_split, config.eval_samples),
        )
        # Last: the row says that the evaluation is done.
        self._record(
            {
                "step": self.step,
                "mean_iou": scores.mean_iou,
                "pixel_accuracy": scores.pixel_accuracy,
            }
        )
        self.progress(
            f"step {self.step}: {config.eval_split} mean IoU {scores.mean_iou:.2%}, "
            f"pixel accuracy {scores.pixel_accuracy:.2%}"
        )
        self._plot()

    def _record(self, row: Mapping[str, float]) -> None:
        if not self.is_first:
            return
        checkpoints.append_history(self.run.history_path, row)
        with self.events.as_default(step=self.step):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self.events.flush()

    def _plot(self) -> None:
        if not self.is_first:
            return
        rows = checkpoints.read_history(self.run.history_path)
        if rows:
            plot_history(rows, self.run.run_dir / "loss.png", self.run.train.loss_smoothing)
