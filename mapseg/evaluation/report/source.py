"""What a report is made from: a run, its history and its stored evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapseg.evaluation.evaluation import Evaluation
from mapseg.evaluation.stored import evaluation_path, parse_evaluation
from mapseg.runs.folder import Run, open_run
from mapseg.runs.history import read_history
from mapseg.stored_json import read_stored_json


@dataclass(frozen=True)
class Source:
    """A run as a report shows it.

    Attributes:
      name: unique among the runs of a report.
      run: options and classes.
      rows: of its history; empty if it has none.
      split: the evaluated split.
      evaluation: of that split; None if none is stored.
      facts: how it was measured: the other fields of its file.
    """

    name: str
    run: Run
    rows: Sequence[Mapping[str, float]]
    split: str
    evaluation: Evaluation | None
    facts: Mapping[str, Any]


def read_sources(run_dirs: Sequence[Path], split: str) -> list[Source]:
    """Reads the runs of a report.

    Args:
      run_dirs: their folders, without repetition.
      split: the split whose evaluations are read; empty is the first run's `eval_split`.

    Raises:
      FileNotFoundError: a folder holds no run.
      ValueError: a folder is given twice, or a file is damaged.
    """
    resolved = [folder.resolve() for folder in run_dirs]
    if len(set(resolved)) < len(resolved):
        raise ValueError(
            f"runs must be given once; got {', '.join(map(str, run_dirs))}. Remedy: leave "
            "--run_dir out of --compare"
        )
    runs = [open_run(folder) for folder in run_dirs]
    split = split or runs[0].train.eval_split
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in run_dirs]
    return [_read(name, run, split) for name, run in zip(names, runs, strict=True)]


def _read(name: str, run: Run, split: str) -> Source:
    rows = read_history(run.history_path) if run.history_path.is_file() else []
    path = evaluation_path(run.run_dir, split)
    if not path.is_file():
        return Source(name, run, rows, split, None, {})
    facts = read_stored_json(path, "evaluate again")
    evaluation = parse_evaluation(facts, path, run.label_set)
    return Source(name, run, rows, split, evaluation, facts)
