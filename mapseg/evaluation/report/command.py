"""The command that trains a run again, from its stored options."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from mapseg.config import ModelConfig, TrainConfig
from mapseg.runs.folder import Run

RECORDS = "RECORDS"  # stands for a folder that is not known


def train_command(run: Run, records_dir: Path | None) -> list[str]:
    """Returns the arguments of the command, only with options that differ from their defaults.

    Args:
      run: the stored run.
      records_dir: None writes a placeholder.
    """
    return [
        "python train_main.py",
        f"--records_dir={_quoted(records_dir or RECORDS)}",
        f"--run_dir={_quoted(run.run_dir)}",
        *(_flag(name, value) for name, value in changed_options(run).items()),
    ]


def report_command(run_dir: Path, records_dir: Path, split: str = "") -> str:
    """Returns the command that writes the report of a run.

    Args:
      run_dir: the run.
      records_dir: its records.
      split: the evaluated split; empty is the run's `eval_split`.
    """
    folders = f"--run_dir={_quoted(run_dir)} --records_dir={_quoted(records_dir)}"
    choice = f" --split={_quoted(split)}" if split else ""
    return f"python -m mapseg.evaluation.report {folders}{choice}"


def evaluate_command(run: Run, records_dir: Path | str, split: str) -> str:
    """Returns the command that evaluates the best checkpoint of a run with all details."""
    folders = f"--run_dir={_quoted(run.run_dir)} --records_dir={_quoted(records_dir)}"
    return f"python train_main.py --mode=evaluate {folders} --eval_split={_quoted(split)}"


def changed_options(run: Run) -> dict[str, Any]:
    """Returns the options that differ from their defaults, by name."""
    changed = {
        field.name: getattr(config, field.name)
        for config, kind in ((run.model, ModelConfig), (run.train, TrainConfig))
        for field in dataclasses.fields(kind)
        if getattr(config, field.name) != field.default
    }
    if run.train.schedule_steps == run.train.steps:  # what the default resolves to
        changed.pop("schedule_steps", None)
    return changed


def differing_options(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Returns the options whose values differ between two runs, by name."""
    return {
        field.name: (getattr(mine, field.name), getattr(theirs, field.name))
        for mine, theirs in ((run.model, other.model), (run.train, other.train))
        for field in dataclasses.fields(mine)
        if getattr(mine, field.name) != getattr(theirs, field.name)
    }


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={_quoted(value)}"


def _quoted(value: Any) -> str:
    return shlex.quote(str(value))
