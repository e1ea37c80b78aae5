"""What a training run is made of, before a step is taken: its options and its records.

Training and the doctor both prepare a run here. Nothing at its top imports TensorFlow, so that an
option or a folder that is wrong is reported at once.
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
    """Opens a run folder with a later call's options, or plans a new run in it.

    Args:
      run_dir: where; a new folder, an empty one, or one that training made before.
      manifest: of the records.
      options: fields of ModelConfig and TrainConfig that the user gave.

    Returns:
      The run, not yet stored.

    Raises:
      FileNotFoundError: a file that `options` name is not there.
      ValueError: an unknown option, a bad value, one that would make another run of it, or other
        records.
    """
    model, train = split_options(options)
    run = resume_run(run_dir, options)
    if run is None:
        return new_run(run_dir, manifest, ModelConfig(**model), TrainConfig(**train))
    check_same_records(run, manifest)
    return run


def resume_run(run_dir: Path, options: Mapping[str, Any]) -> Run | None:
    """Opens a run that has a checkpoint, with a later call's options.

    Without one nothing is lost by other options: then the folder is as good as new.

    Args:
      run_dir: the folder.
      options: fields of ModelConfig and TrainConfig that the user gave.

    Returns:
      The run; None where it is new.

    Raises:
      ValueError: a folder of something else, or an option that would make another run of it.
    """
    if not saved_steps(run_dir / "checkpoints"):
        check_new(run_dir)
        return None
    run = amend_run(open_run(run_dir), options)
    check_steps(run)
    onednn.use_stored(run.onednn)
    return run


def check_steps(run: Run) -> None:
    """Refuses a run that has been trained beyond its `steps`.

    Raises:
      ValueError: it has.
    """
    saved = saved_steps(run.checkpoints_dir)
    if saved and run.train.steps < saved[-1]:
        raise ValueError(
            f"{run.run_dir}: steps must not be below the saved ones, {saved[-1]}; got "
            f"{run.train.steps}. Remedy: leave --steps out, or give another --run_dir"
        )


def check_same_records(run: Run, manifest: "Manifest") -> None:
    """Refuses records that a run did not begin with.

    Args:
      run: as stored.
      manifest: of the records.

    Raises:
      ValueError: other classes, no such split, or other samples in it.
    """
    check_classes(run, manifest.classes, manifest.records_dir)
    if manifest.split(run.train.train_split).digest != run.records_digest:
        raise ValueError(
            f"{manifest.records_dir}: a run must go on with the records that it began with; those "
            f"of {run.run_dir} were others. Remedy: give the same --records_dir, or start another "
            f"--run_dir with --init_from={run.run_dir}"
        )


def new_run(run_dir: Path, manifest: "Manifest", model: ModelConfig, train: TrainConfig) -> Run:
    """Binds a new run to its records; precision and schedule are resolved.

    Args:
      run_dir: its folder.
      manifest: of its records.
      model: the network.
      train: how it is trained.

    Raises:
      FileNotFoundError: the file of the label set is not there.
      ValueError: no such split, or a label set that does not fit.
    """
    split = manifest.split(train.train_split)
    labels = make_label_set(manifest.classes, train.label_set)
    if not labels.count(split.pixels, manifest.classes).any():
        raise ValueError(
            f"{manifest.records_dir}: split {split.name} must have pixels of a class that is "
            f"trained; label set {labels.name} has none there. Remedy: another --label_set or "
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
