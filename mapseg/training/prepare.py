"""Prepares a training run before its first step: options and records.

Used by training and the doctor. No module-level import loads TensorFlow, so that a wrong option or
folder is reported at once.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapseg import onednn
from mapseg.config import ModelConfig, TrainConfig, split_options
from mapseg.labels import make_label_set
from mapseg.machine import gpus
from mapseg.runs.checkpoints import saved_steps
from mapseg.runs.folder import Run, amend_run, check_classes, check_new, open_run

if TYPE_CHECKING:
    from mapseg.data.manifest import Manifest


def begin_run(run_dir: Path, manifest: "Manifest", options: Mapping[str, Any]) -> Run:
    """Opens an existing run with new options, or plans a new run.

    Args:
      run_dir: a new or empty folder, or the folder of an existing run.
      manifest: the manifest of the records.
      options: fields of ModelConfig and TrainConfig set by the user.

    Returns:
      The run, not yet stored.

    Raises:
      FileNotFoundError: a file named in `options` does not exist.
      ValueError: an unknown option, an invalid value, an option that an existing run cannot
        change, or records other than the run's.
    """
    model, train = split_options(options)
    run = resume_run(run_dir, options)
    if run is None:
        return new_run(run_dir, manifest, ModelConfig(**model), TrainConfig(**train))
    check_same_records(run, manifest)
    return run


def resume_run(run_dir: Path, options: Mapping[str, Any]) -> Run | None:
    """Opens a run that has a checkpoint, with new options.

    A run without a checkpoint has nothing to lose, so its folder counts as new.

    Args:
      run_dir: the run folder.
      options: fields of ModelConfig and TrainConfig set by the user.

    Returns:
      The run; None if it is new.

    Raises:
      ValueError: the folder is not a run folder, or an option cannot be changed.
    """
    if not saved_steps(run_dir / "checkpoints"):
        check_new(run_dir)
        return None
    run = amend_run(open_run(run_dir), options)
    check_steps(run)
    onednn.use_stored(run.onednn)
    return run


def check_steps(run: Run) -> None:
    """Checks that a run has not been trained beyond its `steps`.

    Raises:
      ValueError: it has a checkpoint of a later step.
    """
    saved = saved_steps(run.checkpoints_dir)
    if saved and run.train.steps < saved[-1]:
        raise ValueError(
            f"{run.run_dir}: steps must not be below the saved ones, {saved[-1]}; got "
            f"{run.train.steps}. Remedy: leave --steps out, or give another --run_dir"
        )


def check_same_records(run: Run, manifest: "Manifest") -> None:
    """Checks that the records are those that a run was started with.

    Args:
      run: the stored run.
      manifest: the manifest of the records.

    Raises:
      ValueError: the classes differ, the split does not exist, or its samples differ.
    """
    check_classes(run, manifest.classes, manifest.records_dir)
    if manifest.split(run.train.train_split).digest != run.records_digest:
        raise ValueError(
            f"{manifest.records_dir}: a run must resume with the records that it started with; "
            f"those of {run.run_dir} differ. Remedy: give the same --records_dir, or start another "
            f"--run_dir with --init_from={run.run_dir}"
        )


def new_run(run_dir: Path, manifest: "Manifest", model: ModelConfig, train: TrainConfig) -> Run:
    """Binds a new run to its records, and resolves precision and schedule.

    Args:
      run_dir: the run folder.
      manifest: the manifest of the records.
      model: options of the network.
      train: options of training.

    Raises:
      FileNotFoundError: the file of the label set or the initial weights do not exist.
      ValueError: the split does not exist, or the label set does not fit the records.
    """
    split = manifest.split(train.train_split)
    labels = make_label_set(manifest.classes, train.label_set)
    if not labels.count(split.pixels, manifest.classes).any():
        raise ValueError(
            f"{manifest.records_dir}: split {split.name} must have pixels of a class that is "
            f"trained; it has none of label set {labels.name}. Remedy: another --label_set or "
            "--train_split"
        )
    train = replace(
        train,
        precision=resolve_precision(train.precision),
        schedule_steps=train.schedule_steps or train.steps,
    )
    return Run(
        run_dir,
        model,
        train,
        labels,
        split.long_side_px,
        manifest.classes,
        split.digest,
        onednn.is_on(),
        start_sha256=_start_sha256(train.init_from),
    )


def _start_sha256(source: str) -> str:
    """Returns the digest of the initial weights; empty without `init_from`."""
    if not source:
        return ""
    from mapseg.runs.start import start_sha256  # here: it needs packages that may be missing

    return start_sha256(source)


def resolve_precision(precision: str) -> str:
    """Resolves `auto`: mixed_bfloat16 if all GPUs support bfloat16 arithmetic, else float32."""
    if precision != "auto":
        return precision
    devices = gpus()
    # bfloat16 arithmetic needs compute capability 8.0.
    if devices and all(gpu.capability >= (8, 0) for gpu in devices):
        return "mixed_bfloat16"
    return "float32"
