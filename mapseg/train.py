"""One compiled step under tf.distribute, and the loop around it."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mapseg import checkpoints, losses, optimizers
from mapseg.checkpoints import Run
from mapseg.config import ModelConfig, PredictConfig, TrainConfig
from mapseg.encoders import resolve_encoder_weights
from mapseg.evaluate import evaluate, write_evaluation
from mapseg.files import whole_file
from mapseg.labels import make_label_set
from mapseg.model import build_model, weight_arrays
from mapseg.pipeline import batch_keys, train_batches
from mapseg.plots import plot_history
from mapseg.predict import Predictor
from mapseg.progress import duration
from mapseg.records import read_manifest
from mapseg.transfer import init_weights

Progress = Callable[[str], None]

# Keeps dropout's random stream apart from the augmentation's, which is 1.
_DROPOUT = 2
_MOST_SKIPPED_IN_A_ROW = 20


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
        _check_new(run_dir)
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


def _check_new(run_dir: Path) -> None:
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
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    # bfloat16 arithmetic came with compute capability 8.0.
    if details and all(d.get("compute_capability", (0, 0)) >= (8, 0) for d in details):
        return "mixed_bfloat16"
    return "float32"


@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; `checkpoint` holds all of it."""

    model: keras.Model
    optimizer: Any
    step: tf.Variable
    loss_scale: optimizers.LossScale
    checkpoint: tf.train.Checkpoint


def build_state(run: Run, progress: Progress, *, fresh: bool) -> TrainState:
    """Builds network and optimizer; call it in the strategy's scope.

    Args:
      run: what to build.
      progress: takes lines on where the weights come from.
      fresh: load the weights that a new run starts from; otherwise a checkpoint is to follow.
    """
    keras.utils.set_random_seed(run.train.seed)
    step = tf.Variable(0, trainable=False, dtype=tf.int64, name="step")
    config = run.model
    if not fresh or (run.train.init_from and config.encoder_weights == "auto"):
        config = replace(config, encoder_weights="none")
    model = build_model(
        config,
        len(run.label_set.classes),
        dropout_seed=lambda: tf.random.experimental.stateless_fold_in(
            [run.train.seed, _DROPOUT], step
        ),
        precision=run.train.precision,
    )
    if fresh and run.train.init_from:
        for line in init_weights(model, run.train.init_from, run.label_set):
            progress(line)
    if run.train.batch_norm == "frozen":
        freeze_batch_norm(model)
    optimizer = optimizers.build_optimizer(run.train, step, model.trainable_variables)
    loss_scale = optimizers.LossScale(dynamic=run.train.precision == "mixed_float16")
    checkpoint = tf.train.Checkpoint(
        model=model, optimizer=optimizer, step=step, loss_scale=loss_scale
    )
    return TrainState(model, optimizer, step, loss_scale, checkpoint)


def freeze_batch_norm(model: keras.Model) -> None:
    """Keeps every batch norm as it is: its statistics are used and nothing of it is trained."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            freeze_batch_norm(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def make_strategy(config: TrainConfig) -> tf.distribute.Strategy:
    """Chooses where the step runs.

    Raises:
      ValueError: a batch that the devices cannot share evenly.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if config.strategy == "one_device" or (config.strategy == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = gpus or tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([d.name for d in devices])
    if config.batch_size % strategy.num_replicas_in_sync:
        raise ValueError(
            f"batch_size must be a multiple of the {strategy.num_replicas_in_sync} devices; got "
            f"{config.batch_size}. Remedy: another --batch_size, or --strategy=one_device"
        )
    return strategy


def make_step(
    state: TrainState, config: TrainConfig, strategy: tf.distribute.Strategy
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Compiles the training step: (image, label) -> (loss [] float32, finite [] bool).

    If a gradient anywhere is not finite, no variable changes but the step's number and the loss
    scale: the moving statistics that the forward pass already wrote are put back.
    """
    model, optimizer = state.model, state.optimizer
    trained, moving = model.trainable_variables, model.non_trainable_variables
    replicas = strategy.num_replicas_in_sync

    def forward(
        image: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        before = [tf.identity(v) for v in moving]
        scale = tf.convert_to_tensor(state.loss_scale.scale)
        with tf.GradientTape() as tape:
            total, pixels = losses.cross_entropy(model(image, training=True), label)
            context = tf.distribute.get_replica_context()
            pixels = context.all_reduce(tf.distribute.ReduceOp.SUM, pixels)
            loss = tf.math.divide_no_nan(total, pixels)
            decay = optimizers.l2_loss(config, trained) / replicas
            objective = (loss + decay) * scale
        gradients = [g / scale for g in tape.gradient(objective, trained)]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
        return loss, tf.cast(finite, tf.int32), gradients, before

    def apply(gradients: Sequence[tf.Tensor]) -> None:
        optimizers.decay_weights(config, state.step, trained)
        optimizer.apply_gradients(zip(gradients, trained, strict=True))

    def restore(before: Sequence[tf.Tensor]) -> None:
        for variable, value in zip(moving, before, strict=True):
            variable.assign(value)

    # The verdict is taken outside the replicas, for all of them: were each to decide for itself,
    # one with an overflow would leave the others waiting for its gradients.
    @tf.function(jit_compile=_use_xla(config, replicas))
    def step(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, finite, gradients, before = strategy.run(forward, (image, label))
        loss = strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)
        all_finite = strategy.reduce(tf.distribute.ReduceOp.SUM, finite, axis=None) == replicas
        if all_finite:
            strategy.run(apply, (gradients,))
        else:
            strategy.run(restore, (before,))
        state.loss_scale.update(all_finite)
        state.step.assign_add(1)
        return loss, all_finite

    return step


def _use_xla(config: TrainConfig, replicas: int) -> bool:
    if config.xla == "on" and replicas > 1:
        raise ValueError(
            f"xla=on must be used with one device; got {replicas}. Remedy: --xla=auto, or "
            "--strategy=one_device"
        )
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    return config.xla == "on" or (config.xla == "auto" and on_gpu and replicas == 1)


def describe(run: Run, state: TrainState, samples: int, replicas: int) -> list[str]:
    """Says what is about to be trained, on what, and how long it is."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(g).get("device_name", "GPU") for g in gpus]
    devices = ", ".join(details) or f"CPU ({os.cpu_count()} cores)"
    parameters = sum(math.prod(v.shape) for v in state.model.trainable_variables)
    epochs = run.train.steps * run.train.batch_size / samples
    start = run.train.init_from or resolve_encoder_weights(run.model)
    lines = [
        f"run folder {run.run_dir}",
        f"devices: {devices}; precision {run.train.precision}; "
        f"XLA {'on' if _use_xla(run.train, replicas) else 'off'}",
        f"{run.model.encoder} from {start}, "
        f"output stride {run.model.output_stride}, {parameters / 1e6:.2f} M trained parameters, "
        f"{len(run.label_set.classes)} classes ({run.label_set.name})",
        f"{samples} samples, {run.train.steps} steps of {run.train.batch_size} crops of "
        f"{run.train.crop_height}x{run.train.crop_width}: {epochs:.1f} epochs",
    ]
    if run.model.encoder_weights == "auto" and start == "none":
        lines.append(
            f"NOTE: keras.applications has no weights of {run.model.encoder}: it starts at random"
        )
    if not gpus and Path("/proc/driver/nvidia/version").exists():
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
    with checkpoints.locked(run.run_dir):
        if _is_finished(run, evaluating):
            checkpoints.store_run(run)
            progress(f"nothing to do: {run.run_dir} is finished at step {run.train.steps}")
        else:
            loop = _Loop(run, records_dir, progress, evaluating, predicting or PredictConfig())
            loop.go(stopping)


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


class _Loop:
    """One call's work on a run folder: what `train` needs from step to step."""

    def __init__(
        self,
        run: Run,
        records_dir: Path,
        progress: Progress,
        evaluating: bool,
        predicting: PredictConfig,
    ):
        manifest = read_manifest(records_dir)
        self.samples = manifest.split(run.train.train_split).samples
        if evaluating:
            manifest.split(run.train.eval_split)
        self.run, self.records_dir = run, records_dir
        self.progress, self.evaluating = progress, evaluating
        self.strategy = make_strategy(run.train)
        saved = checkpoints.saved_steps(run.checkpoints_dir)
        with self.strategy.scope():
            self.state = build_state(run, progress, fresh=not saved)
        # Only now: a run whose first weights cannot be had leaves no folder behind.
        checkpoints.store_run(run)
        if saved:
            checkpoints.read_state(
                checkpoints.find_checkpoint(run.run_dir, "latest"), self.state.checkpoint
            )
        self.step = int(self.state.step)
        self.saved_step = saved[-1] if saved else -1
        self.saved_at = self.logged_at = time.monotonic()
        self.logged_step = self.step
        history = checkpoints.cut_history(run.history_path, self.step)
        self.evaluated_steps = {int(r["step"]) for r in history if "mean_iou" in r}
        self.skipped = int(max((r.get("skipped_steps", 0) for r in history), default=0))
        self.skipped_in_a_row = 0
        self.pending: list[tuple[tf.Tensor, tf.Tensor]] = []
        self.events = tf.summary.create_file_writer(str(run.run_dir / "tensorboard"))
        self.predictor = Predictor(self.state.model, predicting, run.long_side_px)

    def go(self, stopping: Callable[[], bool]) -> None:
        config = self.run.train
        replicas = self.strategy.num_replicas_in_sync
        for line in describe(self.run, self.state, self.samples, replicas):
            self.progress(line)
        if self.step:
            self.progress(f"going on from step {self.step}")
        self.progress("the first step is being compiled; on a GPU this can take minutes")
        compiled = make_step(self.state, config, self.strategy)
        batches = iter(
            self.strategy.experimental_distribute_dataset(
                train_batches(self.records_dir, config, self.step)
            )
        )
        self._evaluate_if_due()
        self.logged_at = time.monotonic()
        while self.step < config.steps and not stopping():
            self.pending.append(compiled(*next(batches)))
            self.step += 1
            if self.step % config.log_steps == 0 or self.step == config.steps:
                self._log()
            if self._save_is_due():
                self.save()
            self._evaluate_if_due()
            if self.step % config.plot_steps == 0:
                self._plot()
        self.save()
        self._plot()
        if self.step < config.steps:
            self.progress(f"stopped and saved at step {self.step}; the same command goes on")
        else:
            self.progress(f"finished at step {self.step}: {self.run.run_dir}")

    def save(self) -> None:
        """Writes a checkpoint of the present step, unless there is one."""
        if self.saved_step != self.step:
            checkpoints.write_checkpoint(
                self.run.checkpoints_dir,
                self.step,
                self.state.checkpoint,
                weight_arrays(self.state.model),
                self.run.train.keep_checkpoints,
            )
            self.saved_step = self.step
        self.saved_at = time.monotonic()

    def _save_is_due(self) -> bool:
        config = self.run.train
        by_steps = config.checkpoint_steps and self.step % config.checkpoint_steps == 0
        waited = time.monotonic() - self.saved_at
        return bool(by_steps or (config.checkpoint_secs and waited >= config.checkpoint_secs))

    def _log(self) -> None:
        """Reports the steps since the last report; this is where the host waits for the device."""
        config = self.run.train
        kept = [float(loss) for loss, finite in self.pending if bool(finite)]
        for _, finite in self.pending:
            self.skipped_in_a_row = 0 if bool(finite) else self.skipped_in_a_row + 1
        self.skipped += len(self.pending) - len(kept)
        scale = float(self.state.loss_scale.scale)
        if len(kept) < len(self.pending) and scale <= 1:  # else the loss scale will mend it
            self._tell_not_finite()
        now = time.monotonic()
        steps_per_s = (self.step - self.logged_step) / max(now - self.logged_at, 1e-9)
        row = {
            "step": self.step,
            "loss": sum(kept) / len(kept) if kept else math.nan,
            "learning_rate": float(optimizers.learning_rate(config, self.state.step - 1)),
            "images_per_s": steps_per_s * config.batch_size,
            "loss_scale": scale,
            "skipped_steps": self.skipped,
        }
        self._record(row)
        left = duration((config.steps - self.step) / steps_per_s)
        self.progress(
            f"step {self.step}/{config.steps}  loss {row['loss']:.4f}  "
            f"rate {row['learning_rate']:.2e}  {row['images_per_s']:.1f} images/s  {left} left"
        )
        self.pending = []
        self.logged_at, self.logged_step = now, self.step

    def _tell_not_finite(self) -> None:
        """Writes the first batch since the last report whose step was not finite; tells or stops.

        Raises:
          FloatingPointError: as `on_nan` asks, or because too many steps in a row were not finite.
        """
        config = self.run.train
        place = next(i for i, (_, finite) in enumerate(self.pending) if not bool(finite))
        step = self.logged_step + place
        path = self.run.run_dir / "not_finite" / f"step-{step:08d}.npz"
        image, label = next(train_batches(self.records_dir, config, step).as_numpy_iterator())
        keys = batch_keys(self.records_dir, config, step)
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
        if not self.evaluating or not due or self.step in self.evaluated_steps:
            return
        started = time.monotonic()
        self.save()
        scores = evaluate(
            self.predictor,
            self.records_dir,
            config.eval_split,
            self.run.label_set,
            self.progress,
            max_samples=config.eval_samples,
            panels_dir=self.run.run_dir / "evaluation" / "panels",
            panels=config.eval_panels if last else 0,
        )
        write_evaluation(
            self.run.run_dir, config.eval_split, scores, step=self.step, samples=config.eval_samples
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
        self.evaluated_steps.add(self.step)
        self.progress(
            f"step {self.step}: {config.eval_split} mean IoU {scores.mean_iou:.2%}, "
            f"pixel accuracy {scores.pixel_accuracy:.2%}"
        )
        self._plot()
        self.logged_at += time.monotonic() - started  # an evaluation's time is not the training's

    def _record(self, row: Mapping[str, float]) -> None:
        checkpoints.append_history(self.run.history_path, row)
        with self.events.as_default(step=self.step):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self.events.flush()

    def _plot(self) -> None:
        rows = checkpoints.read_history(self.run.history_path)
        if rows:
            plot_history(rows, self.run.run_dir / "loss.png", self.run.train.loss_smoothing)
