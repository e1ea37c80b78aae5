"""A run: its network, options, classes and records, and the folder that stores them."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mapseg
from mapseg import files
from mapseg.config import ModelConfig, TrainConfig, from_json, identity_conflicts, to_json
from mapseg.files import naming, write_text
from mapseg.labels import LabelClass, LabelSet, make_label_set, parse_class_table
from mapseg.progress import show
from mapseg.stored_json import read_field, read_stored_json

FORMAT_VERSION = 1

# Training's output besides checkpoints, which a new run must not find.
_WRITTEN = (
    "history.csv",
    "loss.png",
    "tensorboard/events.out.tfevents.*",
    "evaluation/*.json",
    "evaluation/*.csv",
    "evaluation/panels*/**/*.jpg",
    "report/index.html",
    "report/pictures/*",
    "not_finite/step-*.npz",
    "checkpoints/best.json",
)
# Their temporary names, from `files.whole_file`.
_PARTIAL = re.compile(r"\.(config|labels|history|loss|best)\.\d+\.partial\.\w+")
_PARTIAL_CHECKPOINT = re.compile(r"\.step-\d+\.\d+\.partial")
_RESTORE = "restore the file as training wrote it, or train in another --run_dir"


@dataclass(frozen=True)
class Run:
    """A run as its folder stores it.

    Attributes:
      run_dir: the folder.
      model: options of the network.
      train: options of training; `precision` and `schedule_steps` are resolved.
      label_set: train ids and their classes.
      long_side_px: median long side of the training images.
      source_classes: class table of the records; `label_set` maps its ids.
      records_digest: of the training split; a run never resumes on other samples.
      onednn: whether it began with oneDNN; None: an earlier version left it to TensorFlow.
      machine: the devices that it was last trained on, as text; empty: not known.
      start_sha256: of the weights of `init_from`; empty: none, or an earlier version did not
        store it.
      id: random; also in its checkpoints, to detect those of another run. Empty: begun by a
        version without ids.
    """

    run_dir: Path
    model: ModelConfig
    train: TrainConfig
    label_set: LabelSet
    long_side_px: int
    source_classes: tuple[LabelClass, ...]
    records_digest: str
    onednn: bool | None = None
    machine: str = ""
    start_sha256: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def history_path(self) -> Path:
        """The CSV of losses, rates and scores by step."""
        return self.run_dir / "history.csv"

    @property
    def checkpoints_dir(self) -> Path:
        """The folder of checkpoints."""
        return self.run_dir / "checkpoints"


def open_run(run_dir: Path) -> Run:
    """Reads a run from its folder.

    Raises:
      FileNotFoundError: not a run folder.
      ValueError: written by an unsupported version, or damaged.
    """
    config_path, labels_path = run_dir / "config.json", run_dir / "labels.json"
    for path in (config_path, labels_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"{run_dir}: not a run folder, {path.name} is missing. Remedy: give the --run_dir "
                "of a training run"
            )
    raw, labels = (read_stored_json(path, _RESTORE) for path in (config_path, labels_path))

    def stored(name: str, kind: type) -> Any:
        return read_field(raw, name, kind, config_path, _RESTORE)

    version = stored("format_version", int)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{config_path}: format_version must be {FORMAT_VERSION}; got {version}. Remedy: use "
            f"the mapseg that wrote it, {raw.get('mapseg', 'unknown')}"
        )
    return Run(
        run_dir,
        from_json(ModelConfig, stored("model", dict), str(config_path)),
        from_json(TrainConfig, stored("train", dict), str(config_path)),
        LabelSet.from_json(labels, str(labels_path)),
        stored("long_side_px", int),
        parse_class_table({"labels": stored("source_classes", list)}, str(config_path)),
        stored("records_digest", str),
        stored("onednn", bool) if "onednn" in raw else None,
        stored("machine", str) if "machine" in raw else "",
        stored("start_sha256", str) if "start_sha256" in raw else "",
        stored("id", str) if "id" in raw else "",
    )


def store_run(run: Run) -> None:
    """Writes `config.json` and `labels.json`."""
    config = {
        "format_version": FORMAT_VERSION,
        "mapseg": mapseg.__version__,
        "model": to_json(run.model),
        "train": to_json(run.train),
        "long_side_px": run.long_side_px,
        "records_digest": run.records_digest,
        **({} if run.onednn is None else {"onednn": run.onednn}),
        **({"machine": run.machine} if run.machine else {}),
        **({"start_sha256": run.start_sha256} if run.start_sha256 else {}),
        **({"id": run.id} if run.id else {}),
        "source_classes": [c.to_json() for c in run.source_classes],
    }
    write_text(run.run_dir / "labels.json", json.dumps(run.label_set.to_json(), indent=1) + "\n")
    write_text(run.run_dir / "config.json", json.dumps(config, indent=1) + "\n")


def check_new(run_dir: Path) -> None:
    """Refuses to start a new run in a folder that holds other files.

    Files of a run that ended before its first checkpoint are allowed: see `clear_leftovers`.

    Raises:
      ValueError: the folder has files, but no config.json of mapseg.
    """
    names = {p.name for p in run_dir.iterdir()} if run_dir.exists() else set()
    config_path = run_dir / "config.json"
    if config_path.name in names:
        raw = read_stored_json(config_path, "give another --run_dir")
        if not (isinstance(raw, dict) and {"format_version", "mapseg"} <= set(raw)):
            raise ValueError(
                f"{config_path}: must be written by mapseg; it is not. Remedy: give another "
                "--run_dir"
            )
        return
    # A run may have been killed between writing labels.json and config.json.
    foreign = sorted(n for n in names - {".lock", "labels.json"} if not _PARTIAL.fullmatch(n))
    if foreign:
        raise ValueError(
            f"{run_dir}: a new run's folder must be empty; it holds {', '.join(foreign[:3])} and "
            "no config.json. Remedy: give another --run_dir"
        )


def clear_leftovers(run_dir: Path, *, is_new: bool) -> list[str]:
    """Removes unfinished files of earlier starts.

    Args:
      run_dir: the folder, which this process has locked.
      is_new: the run has no checkpoint yet; all other output of training is removed too.

    Returns:
      The names of the removed files and folders, without temporary ones.
    """
    for folder in (run_dir, run_dir / "checkpoints"):
        for path in folder.glob(".*"):
            if _PARTIAL.fullmatch(path.name):
                path.unlink()
            elif _PARTIAL_CHECKPOINT.fullmatch(path.name):
                shutil.rmtree(path)
    leftovers = [path for pattern in _WRITTEN for path in run_dir.glob(pattern)] if is_new else []
    for path in leftovers:
        path.unlink()
    return sorted({path.relative_to(run_dir).parts[0] for path in leftovers})


def check_classes(run: Run, classes: Sequence[LabelClass], records_dir: Path) -> None:
    """Rejects records whose classes differ from those that a run was trained on.

    Raises:
      ValueError: the class tables differ.
    """
    if tuple(classes) != run.source_classes:
        raise ValueError(
            f"{records_dir}: the records' classes must be those that {run.run_dir} was trained on; "
            "they differ. Remedy: give records of the same source, or fine-tune in another "
            f"--run_dir with --init_from={run.run_dir}"
        )


def amend_run(run: Run, options: Mapping[str, Any]) -> Run:
    """Applies the options of a later call to a stored run.

    Args:
      run: as stored.
      options: option name -> value, only those that the user set.

    Returns:
      The run with its changeable options replaced.

    Raises:
      ValueError: an option that must not change has another value.
    """
    options = {k: v for k, v in options.items() if not _means_stored(run, k, v)}
    conflicts = identity_conflicts(run.model, options) + identity_conflicts(run.train, options)
    if conflicts:
        raise ValueError(
            f"{run.run_dir}: options that define a run must not change: {'; '.join(conflicts)}. "
            "Remedy: leave them out, or give another --run_dir"
        )
    names = to_json(run.train).keys()
    changes = {k: v for k, v in options.items() if k in names}
    return replace(run, train=replace(run.train, **changes))


def _means_stored(run: Run, name: str, value: Any) -> bool:
    """Whether a value denotes the one resolved when the run began."""
    if name == "label_set" and str(value).endswith(".json"):
        return _is_stored_label_set(run, value)
    return (name, value) in {("precision", "auto"), ("schedule_steps", 0)}


def _is_stored_label_set(run: Run, path: str) -> bool:
    """Whether a file is the run's label set, by name or, in case it moved, by content.

    The stored set is used; a file of that name that has changed since is reported.
    """
    is_named = path == run.train.label_set
    try:
        file, stored = make_label_set(run.source_classes, path).to_json(), run.label_set.to_json()
        same = {**file, "name": ""} == {**stored, "name": ""}
    except (OSError, ValueError):  # removed or damaged
        return is_named
    if is_named and not same:
        show(
            f"WARNING: {path} was changed since {run.run_dir} began; the run keeps the label set "
            "in its labels.json. To use the new one, give another --run_dir"
        )
    return is_named or same


@contextmanager
def lock_run(run_dir: Path) -> Iterator[Callable[[], None]]:
    """Locks a run folder for one training process; ValueError if another process holds it.

    Yields:
      A check to call before each write, which would otherwise recreate the folder: it raises
      FileNotFoundError if the folder was removed, moved, or replaced by another process.
    """
    path = run_dir / ".lock"
    refusal = (
        f"{run_dir}: must be trained by one process at a time; another process is running. "
        "Remedy: wait for it, or give another --run_dir"
    )
    holder = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"

    def check() -> None:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == holder:
                return
        raise FileNotFoundError(
            f"{run_dir}: the run folder must stay in place during training; it was removed, moved "
            "or replaced. Remedy: run the same command again to start over; if the folder was "
            "moved, give its new --run_dir to resume from the last checkpoint"
        )

    existed = run_dir.exists()
    with files.locked(path, refusal) as file:
        with naming(path):
            file.truncate(0)
            file.write(holder)
            file.flush()
        try:
            yield check
        finally:
            with contextlib.suppress(OSError):  # nothing was written: removes the folder
                if [entry.name for entry in run_dir.iterdir()] == [path.name]:
                    path.unlink()
                    if not existed:
                        run_dir.rmdir()
