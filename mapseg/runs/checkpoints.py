"""The run folder: what a run is, its checkpoints and its history.

A checkpoint is a folder `checkpoints/step-00001000` that appears whole: `state` (TensorFlow's
checkpoint of every training variable, exact, for one Keras major version), `weights.npz` (the
network alone, for any version) and `info.json`.
"""

import csv
import json
import math
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mapseg
from mapseg import files
from mapseg.config import ModelConfig, TrainConfig, from_json, identity_conflicts, to_json
from mapseg.files import whole_dir, whole_file, write_text
from mapseg.labels import LabelClass, LabelSet, parse_class_table

FORMAT_VERSION = 1
HISTORY_COLUMNS = (
    "step",
    "loss",
    "learning_rate",
    "images_per_s",
    "loss_scale",
    "skipped_steps",
    "mean_iou",
    "pixel_accuracy",
)
_STEP_DIR = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Run:
    """What a run folder is bound to.

    Attributes:
      run_dir: the folder.
      model: the network.
      train: how it is trained; `precision` and `schedule_steps` are resolved.
      label_set: train ids and their classes.
      long_side_px: median long side of the images that it is trained on.
      source_classes: class table of the records, whose ids `label_set` maps.
      records_digest: of the training split, so that a run never goes on with other samples.
    """

    run_dir: Path
    model: ModelConfig
    train: TrainConfig
    label_set: LabelSet
    long_side_px: int
    source_classes: tuple[LabelClass, ...]
    records_digest: str

    @property
    def history_path(self) -> Path:
        """The CSV of losses, rates and scores by step."""
        return self.run_dir / "history.csv"

    @property
    def checkpoints_dir(self) -> Path:
        """The folder of checkpoints."""
        return self.run_dir / "checkpoints"


def open_run(run_dir: Path) -> Run:
    """Reads what a run folder is bound to.

    Raises:
      FileNotFoundError: not a run folder.
      ValueError: written by a version that this one does not understand.
    """
    config_path, labels_path = run_dir / "config.json", run_dir / "labels.json"
    for path in (config_path, labels_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"{run_dir}: not a run folder, {path.name} is missing. Remedy: give the --run_dir "
                "of a training run"
            )
    try:
        raw, labels = (
            json.loads(p.read_text(encoding="utf-8")) for p in (config_path, labels_path)
        )
        if raw["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{config_path}: format_version must be {FORMAT_VERSION}; got "
                f"{raw['format_version']}. Remedy: use the mapseg that wrote it, "
                f"{raw.get('mapseg', 'unknown')}"
            )
        return Run(
            run_dir,
            from_json(ModelConfig, raw["model"], str(config_path)),
            from_json(TrainConfig, raw["train"], str(config_path)),
            LabelSet.from_json(labels, str(labels_path)),
            int(raw["long_side_px"]),
            parse_class_table({"labels": raw["source_classes"]}, str(config_path)),
            str(raw["records_digest"]),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{config_path}: not written by mapseg, or damaged: {error!r}") from error


def store_run(run: Run) -> None:
    """Writes `config.json` and `labels.json`."""
    config = {
        "format_version": FORMAT_VERSION,
        "mapseg": mapseg.__version__,
        "model": to_json(run.model),
        "train": to_json(run.train),
        "long_side_px": run.long_side_px,
        "records_digest": run.records_digest,
        "source_classes": [c.to_json() for c in run.source_classes],
    }
    write_text(run.run_dir / "labels.json", json.dumps(run.label_set.to_json(), indent=1) + "\n")
    write_text(run.run_dir / "config.json", json.dumps(config, indent=1) + "\n")


def check_classes(run: Run, classes: Sequence[LabelClass], records_dir: Path) -> None:
    """Refuses records whose ids mean other classes than those that a run was trained on.

    Raises:
      ValueError: the class tables differ.
    """
    if tuple(classes) != run.source_classes:
        raise ValueError(
            f"{records_dir}: the records' classes must be those that {run.run_dir} was trained on; "
            "they differ. Remedy: give records of the same source, or fine-tune in another "
            f"--run_dir with --init_from={run.run_dir}"
        )


def amend_run(run: Run, asked: Mapping[str, Any]) -> Run:
    """Applies the options of a later call to a stored run.

    Args:
      run: as stored.
      asked: option name -> value, only those that the user gave.

    Returns:
      The run with its changeable options replaced.

    Raises:
      ValueError: an option that makes the run what it is has another value.
    """
    asked = {k: v for k, v in asked.items() if not _means_stored(run, k, v)}
    conflicts = identity_conflicts(run.model, asked) + identity_conflicts(run.train, asked)
    if conflicts:
        raise ValueError(
            f"{run.run_dir}: this run's options must stay: {'; '.join(conflicts)}. "
            "Remedy: leave them out, or give another --run_dir"
        )
    known = to_json(run.train)
    return replace(run, train=replace(run.train, **{k: v for k, v in asked.items() if k in known}))


def _means_stored(run: Run, name: str, value: Any) -> bool:
    """Whether an option only repeats what was resolved when the run began."""
    return (name, value) in {("precision", "auto"), ("schedule_steps", 0)}


def locked(run_dir: Path) -> AbstractContextManager[None]:
    """Holds a run folder for one training process; ValueError where another one has it."""
    return files.locked(
        run_dir / ".lock",
        f"{run_dir}: must be trained by one process at a time; another one is at work. "
        "Remedy: wait for it, or give another --run_dir",
    )


def saved_steps(checkpoints_dir: Path) -> list[int]:
    """Lists the steps that have a checkpoint, ascending."""
    if not checkpoints_dir.is_dir():
        return []
    found = (_STEP_DIR.fullmatch(p.name) for p in checkpoints_dir.iterdir())
    return sorted(int(match[1]) for match in found if match)


def find_checkpoint(run_dir: Path, which: str = "best") -> Path:
    """Finds a checkpoint's folder.

    Args:
      run_dir: a run folder.
      which: `best` (by validation mean IoU; the newest where none was evaluated), `latest`, or a
        step.

    Raises:
      FileNotFoundError: it does not exist; the message lists what does.
    """
    checkpoints_dir = run_dir / "checkpoints"
    steps = saved_steps(checkpoints_dir)
    best = read_best(checkpoints_dir)
    chosen = steps[-1] if steps else None
    if which == "best" and best is not None:
        chosen = best.step
    elif which not in ("best", "latest"):
        chosen = int(which) if which.isdigit() else None
    if chosen not in steps:
        raise FileNotFoundError(
            f"{checkpoints_dir}: checkpoint must be best, latest or a saved step, of {steps}; "
            f"got {which}" + ("" if steps else ". Remedy: train first")
        )
    return _step_dir(checkpoints_dir, chosen)


def write_checkpoint(
    checkpoints_dir: Path,
    step: int,
    state: tf.train.Checkpoint,
    weights: Mapping[str, np.ndarray],
    keep: int,
) -> Path:
    """Saves the training state and the weights, then removes what is older than `keep`.

    The best checkpoint is never removed.
    """
    path = _step_dir(checkpoints_dir, step)
    info = {"step": step, "keras": keras.__version__, "tensorflow": tf.__version__}
    with whole_dir(path) as partial:
        state.write(str(partial / "state"))
        np.savez(partial / "weights.npz", **weights)  # type: ignore[arg-type]
        (partial / "info.json").write_text(json.dumps(info) + "\n", encoding="utf-8")
    best = read_best(checkpoints_dir)
    for old in saved_steps(checkpoints_dir)[:-keep]:
        if best is None or old != best.step:
            shutil.rmtree(_step_dir(checkpoints_dir, old))
    return path


def read_state(path: Path, state: tf.train.Checkpoint) -> None:
    """Restores every training variable, exactly.

    Args:
      path: a checkpoint's folder.
      state: with the same structure as when it was written; all variables exist.

    Raises:
      ValueError: written under another major version of Keras, or something does not match.
    """
    info = json.loads((path / "info.json").read_text(encoding="utf-8"))
    if info["keras"].split(".")[0] != keras.__version__.split(".")[0]:
        raise ValueError(
            f"{path}: training must go on under the Keras that it began with, {info['keras']}; "
            f"this is {keras.__version__}. Remedy: use that environment, or start a new run from "
            "these weights with --init_from"
        )
    try:
        status = state.read(str(path / "state"))
        status.assert_existing_objects_matched()
        status.assert_consumed()
    except (AssertionError, IndexError, tf.errors.OpError, ValueError) as error:
        raise ValueError(
            f"{path}: the saved state must fit this run; it does not, or is damaged: {error}"
        ) from error


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights of a checkpoint's folder, or of an `.npz` file of them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a weights file.
    """
    path = path / "weights.npz" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: must be a whole weights file of mapseg (.npz); {error}. Remedy: give another "
            "checkpoint, or copy it again"
        ) from error


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far, and on what it was measured: scores on other images differ."""

    step: int
    mean_iou: float
    split: str
    eval_samples: int


def read_best(checkpoints_dir: Path) -> Best | None:
    """Reads which checkpoint is the best; None before an evaluation."""
    path = checkpoints_dir / "best.json"
    if not path.is_file():
        return None
    return Best(**json.loads(path.read_text(encoding="utf-8")))


def note_score(checkpoints_dir: Path, found: Best) -> None:
    """Makes a checkpoint the best, if it is better or the former was measured on other images."""
    best = read_best(checkpoints_dir)
    comparable = best is not None and (best.split, best.eval_samples) == (
        found.split,
        found.eval_samples,
    )
    if math.isnan(found.mean_iou) or (
        best is not None and comparable and found.mean_iou <= best.mean_iou
    ):
        return
    write_text(checkpoints_dir / "best.json", json.dumps(asdict(found)) + "\n")


def _step_dir(checkpoints_dir: Path, step: int) -> Path:
    return checkpoints_dir / f"step-{step:08d}"


def read_history(path: Path) -> list[dict[str, float]]:
    """Reads a `history.csv`: one dict a row with the columns that have a value.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a history.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such history. Remedy: train first")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(reader.fieldnames or ()) >= {"step", "loss"}:
            raise ValueError(f"{path}: must be a history.csv of mapseg with columns step, loss")
        # A process that was killed while it appended leaves a last row without its end.
        rows = [row for row in reader if row["step"] and None not in row.values()]
    try:
        return [{k: float(v) for k, v in row.items() if v} for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: must hold numbers only; {error}") from error


def training_secs(rows: Sequence[Mapping[str, float]], batch_size: int) -> float:
    """Adds up how long the steps of a history took, without compiling and evaluating."""
    secs, before = 0.0, 0.0
    for row in rows:
        if "images_per_s" in row:
            secs += (row["step"] - before) * batch_size / row["images_per_s"]
        before = row["step"]
    return secs


def append_history(path: Path, row: Mapping[str, float]) -> None:
    """Adds a row; columns that it lacks stay empty."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def cut_history(path: Path, last_step: int) -> list[dict[str, float]]:
    """Drops the rows after a step, which a resumed run will write again; returns the others."""
    rows = [r for r in read_history(path) if r["step"] <= last_step] if path.is_file() else []
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows(_as_written(rows))
    return rows


def _as_written(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    counts = {"step", "skipped_steps"}
    return [{k: int(v) if k in counts else v for k, v in row.items()} for row in rows]
