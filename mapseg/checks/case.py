"""A case: a planned training run, and the results of the checks on it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mapseg.config import ModelConfig, TrainConfig
from mapseg.files import nearest_folder
from mapseg.labels import LabelSet
from mapseg.runs.folder import Run

if TYPE_CHECKING:  # TensorFlow takes seconds to import, and may be missing
    from mapseg.data.manifest import Manifest
    from mapseg.training.trial import Trial

OK, WARN, FAIL, SKIP = "ok", "WARN", "FAIL", "skip"


@dataclass(frozen=True)
class Finding:
    """The result of a check: its level, a description and, for a problem, the remedy."""

    level: str
    text: str


@dataclass(repr=False)
class Case:
    """A planned training run; each check adds the results that later checks need."""

    options: Mapping[str, Any]  # fields of ModelConfig and TrainConfig, only those the user set
    run_dir: Path | None
    records_dir: Path | None
    mode: str  # of train_main.py
    progress: Callable[[str], None]
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stored: Run | None = None  # the run to resume
    saved: list[int] = field(default_factory=list)  # steps of its checkpoints
    weights_at_hand: bool = False
    manifest: "Manifest" = field(init=False)
    labels: LabelSet | None = None
    class_pixels: np.ndarray | None = None  # in the training split, by train id
    batch: tuple[np.ndarray, np.ndarray] | None = None  # from the input pipeline
    samples: str = "a synthetic batch"  # where the batch comes from
    input_secs: float = 0.0  # per batch of the records
    trial: "Trial" = field(init=False)
    config: TrainConfig = field(init=False)  # for this process: its share of the batch

    @property
    def start_step(self) -> int:
        """The step at which training starts."""
        return self.saved[-1] if self.saved else 0

    @property
    def goal(self) -> Path:
        """The run folder; the current folder if none is given."""
        return self.run_dir or Path()


def writable_folder(goal: Path, remedy: str) -> Path:
    """Checks that a folder is writable; returns it, or its nearest existing parent.

    Raises:
      PermissionError: the folder is not writable.
    """
    folder = nearest_folder(goal)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{goal.absolute()} must be writable; {folder} is not. Remedy: {remedy}"
        )
    return folder
