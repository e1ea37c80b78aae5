"""The checkpoints of a run, and which of them is the best.

A checkpoint is a folder `checkpoints/step-00001000`, written atomically: `state` (a TensorFlow
checkpoint of all training variables, exact, for one Keras major version), `weights.npz` (only
the network, for any version) and `info.json`.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mapseg.files import file_sha256, whole_dir, write_text
from mapseg.stored_json import read_field, read_stored_json

if TYPE_CHECKING:  # commands that only read a run folder need no TensorFlow
    import tensorflow as tf

_STEP_DIR = re.compile(r"step-(\d{8,})")


def saved_steps(checkpoints_dir: Path) -> list[int]:
    """Lists the steps that have a checkpoint, ascending."""
    if not checkpoints_dir.is_dir():
        return []
    matches = (_STEP_DIR.fullmatch(p.name) for p in checkpoints_dir.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def find_checkpoint(run_dir: Path, which: str = "best") -> Path:
    """Finds a checkpoint's folder.

    Args:
      run_dir: a run folder.
      which: `best` (by validation mean IoU; the newest if none was evaluated), `latest`, or a
        step.

    Raises:
      FileNotFoundError: no such checkpoint; the message lists those that exist.
      ValueError: it belongs to another run, or to another step.
    """
    checkpoints_dir = run_dir / "checkpoints"
    steps = saved_steps(checkpoints_dir)
    chosen = steps[-1] if steps else None
    if which == "best" and (best := read_best(checkpoints_dir)) is not None:
        chosen = best.step
        which = f"best, which is step {chosen} according to best.json"
    elif which not in ("best", "latest"):
        chosen = int(which) if which.isdecimal() else None
    if chosen not in steps:
        raise FileNotFoundError(
            f"{checkpoints_dir}: checkpoint must be best, latest or of the steps {steps}; "
            f"got {which}. Remedy: "
            + ("give one of these, or --checkpoint=latest" if steps else "train first")
        )
    path = _step_dir(checkpoints_dir, chosen)
    _check_place(path)
    return path


def _check_place(path: Path) -> None:
    """Rejects a checkpoint that was copied from another run's folder, or renamed."""
    run_id, info = _run_id(path.parent), _read_object(path / "info.json")
    if run_id and info.get("run", run_id) != run_id:
        raise ValueError(
            f"{path}: a checkpoint must belong to the run of its folder, {run_id}; it belongs to "
            f"run {info['run']}. Remedy: remove it; to start a new run from it, --init_from=PATH"
        )
    step = checkpoint_step(path)
    if info.get("step", step) != step:
        raise ValueError(
            f"{path}: a checkpoint must have the step of its name; it has step {info['step']}. "
            "Remedy: rename it back, or remove it"
        )


def _run_id(checkpoints_dir: Path) -> str:
    return str(_read_object(checkpoints_dir.parent / "config.json").get("id", ""))


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if missing or damaged, which other readers report."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def weights_sha256(path: Path) -> str:
    """Returns the digest of a checkpoint's weights.

    Raises:
      FileNotFoundError: the checkpoint has no weights.
    """
    weights_path = path / "weights.npz"
    if not weights_path.is_file():
        raise FileNotFoundError(
            f"{weights_path}: no such weights file. Remedy: another --checkpoint, or copy it again"
        )
    return file_sha256(weights_path)


def write_checkpoint(
    checkpoints_dir: Path,
    step: int,
    state: "tf.train.Checkpoint",
    weights: Mapping[str, np.ndarray],
    keep: int,
) -> Path:
    """Writes a checkpoint of the state and the weights, then removes old ones.

    Keeps the newest `keep` and the best.

    Raises:
      WriteError: the checkpoint cannot be written.
    """
    import keras
    import tensorflow as tf

    path = _step_dir(checkpoints_dir, step)
    info = {"step": step, "keras": keras.__version__, "tensorflow": tf.__version__}
    if run_id := _run_id(checkpoints_dir):
        info["run"] = run_id
    with whole_dir(path) as partial:
        state.write(str(partial / "state"))
        np.savez(partial / "weights.npz", **weights)  # type: ignore[arg-type]
        (partial / "info.json").write_text(json.dumps(info) + "\n", encoding="utf-8")
    best = read_best(checkpoints_dir)
    for old in saved_steps(checkpoints_dir)[:-keep]:
        if best is None or old != best.step:
            shutil.rmtree(_step_dir(checkpoints_dir, old))
    return path


def read_state(path: Path, state: "tf.train.Checkpoint") -> None:
    """Restores every training variable, exactly.

    Args:
      path: a checkpoint's folder.
      state: same structure as when written; all its variables exist.

    Raises:
      FileNotFoundError: the checkpoint has no `info.json`.
      ValueError: written under another major version of Keras or by another run, damaged, or
        with other variables.
    """
    import keras
    import tensorflow as tf

    remedy = (
        f"copy the checkpoint again, or remove {path}: training then resumes from the checkpoint "
        "before it, or starts from step 0 if there is none"
    )
    info_path = path / "info.json"
    if not info_path.is_file():
        raise FileNotFoundError(f"{info_path}: no such file. Remedy: {remedy}")
    info = read_stored_json(info_path, remedy)
    written = read_field(info, "keras", str, info_path, remedy)
    if written.split(".")[0] != keras.__version__.split(".")[0]:
        raise ValueError(
            f"{path}: training must resume under the major version of Keras that it began with, "
            f"{written}; got {keras.__version__}. Remedy: use that version, or start a new run "
            "from these weights with --init_from"
        )
    _check_place(path)
    try:
        status = state.read(str(path / "state"))
        status.assert_existing_objects_matched()
        status.assert_consumed()
    except (AssertionError, IndexError, tf.errors.OpError, ValueError) as error:
        raise ValueError(
            f"{path}: the saved state must be complete and match this run; {error}. "
            f"Remedy: {remedy}"
        ) from error


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far, its score, the images that were scored, and how.

    Attributes:
      step: of the checkpoint.
      mean_iou: its score.
      split: the split that was scored.
      eval_samples: number of samples scored, from the first; 0 is all.
      measured: digest of the records and of the options of prediction; empty if unknown, as in
        files of earlier versions.
    """

    step: int
    mean_iou: float
    split: str
    eval_samples: int
    measured: str = ""

    def comparable(self, other: "Best") -> bool:
        """Whether two scores were measured on the same images in the same way, as far as known."""
        same_images = (self.split, self.eval_samples) == (other.split, other.eval_samples)
        return same_images and (
            "" in (self.measured, other.measured) or self.measured == other.measured
        )


def read_best(checkpoints_dir: Path) -> Best | None:
    """Reads which checkpoint is the best; None before the first evaluation.

    Raises:
      ValueError: the file is damaged.
    """
    path = checkpoints_dir / "best.json"
    if not path.is_file():
        return None
    remedy = "remove the file: until the next evaluation the newest checkpoint then counts as best"
    raw = read_stored_json(path, remedy)
    kinds = {"step": int, "mean_iou": float, "split": str, "eval_samples": int}
    if isinstance(raw, dict) and "measured" in raw:
        kinds["measured"] = str
    return Best(**{name: read_field(raw, name, kinds[name], path, remedy) for name in kinds})


def kept_best(checkpoints_dir: Path) -> Best | None:
    """Reads which checkpoint is the best; None also if someone removed that checkpoint."""
    best = read_best(checkpoints_dir)
    return best if best is not None and best.step in saved_steps(checkpoints_dir) else None


def note_score(checkpoints_dir: Path, candidate: Best) -> None:
    """Stores a checkpoint as the best if it beats the stored one or cannot be compared with it."""
    best = kept_best(checkpoints_dir)
    is_beaten = best is not None and (
        best.comparable(candidate) and candidate.mean_iou <= best.mean_iou
    )
    if math.isnan(candidate.mean_iou) or is_beaten:
        return
    write_text(checkpoints_dir / "best.json", json.dumps(asdict(candidate)) + "\n")


def checkpoint_step(path: Path) -> int:
    """Returns the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def _step_dir(checkpoints_dir: Path, step: int) -> Path:
    return checkpoints_dir / f"step-{step:08d}"
