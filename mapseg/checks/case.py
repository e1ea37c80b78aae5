"""A case: what is to be trained, and what the checks have found out about it."""

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

if TYPE_CHECKING:  # TensorFlow takes seconds to import, and may not be there
    from mapseg.data.manifest import Manifest
    from mapseg.training.trial import Trial

OK, WARN, FAIL, SKIP = "ok", "WARN", "FAIL", "skip"


@dataclass(frozen=True)
class Finding:
    """What a check found: its level, and what is or what is wrong, with the remedy."""

    level: str
    text: str


@dataclass(repr=False)
class Case:
    """What is to be trained, and what the checks found out about it for those after them."""

    options: Mapping[str, Any]  # of ModelConfig and TrainConfig, those that were given
    run_dir: Path | None
    records_dir: Path | None
    mode: str  # as of train_main.py
    progress: Callable[[str], None]
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stored: Run | None = None  # that is resumed
    saved: list[int] = field(default_factory=list)  # its steps
    weights_at_hand: bool = False
    manifest: "Manifest" = field(init=False)
    labels: LabelSet | None = None
    class_pixels: np.ndarray | None = None  # of the split, by train id
    batch: tuple[np.ndarray, np.ndarray] | None = None  # as the pipeline gives it
    samples: str = "a synthetic batch"  # what is in it
    input_secs: float = 0.0  # for a batch of the records
    trial: "Trial" = field(init=False)
    config: TrainConfig = field(init=False)  # of this process: its share of the batch

    @property
    def start_step(self) -> int:
        """The step that training begins with."""
        return self.saved[-1] if self.saved else 0

    @property
    def goal(self) -> Path:
        """Where the run goes; this folder where none is given."""
        return self.run_dir or Path()


def writable_folder(goal: Path, remedy: str) -> Path:
    """Returns a folder that can be written to, or the nearest above one that is to be made.

    Raises:
      PermissionError: it cannot be written to.
    """
    folder = nearest_folder(goal)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{goal.absolute()} must be writable; {folder} is not. Remedy: {remedy}"
        )
    return folder
