"""Ends a run early whose validation score no longer improves."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mapseg.config import TrainConfig
from mapseg.runs.checkpoints import kept_best, saved_steps
from mapseg.runs.folder import Run
from mapseg.runs.history import read_history


class EarlyEnd(NamedTuple):
    """Why a run ends early.

    Attributes:
      evaluations: number of evaluations in a row without a better score.
      best_step: step of the best evaluation; None if none had a score.
    """

    evaluations: int
    best_step: int | None

    def __str__(self) -> str:
        """Returns the reason as a clause."""
        count = self.evaluations
        evaluations = "1 evaluation" if count == 1 else f"{count} evaluations in a row"
        if self.best_step is None:
            return f"{evaluations} without a mean IoU"
        return f"{evaluations} without a better mean IoU than at step {self.best_step}"


def early_end(
    scores: Mapping[int, float], patience: int, best_step: int | None = None
) -> EarlyEnd | None:
    """Decides from the evaluations of a run whether it ends early.

    Args:
      scores: validation mean IoU by step, ascending; nan is never better.
      patience: number of evaluations in a row without a better score that ends a run; 0: no number.
      best_step: step of the best checkpoint, which a run chooses anew when it is evaluated on other
        images; None takes the highest score.

    Returns:
      The reason; None if the run does not end.
    """
    if best_step is None:
        numbers = {step: score for step, score in scores.items() if not math.isnan(score)}
        best_step = max(numbers, key=numbers.__getitem__, default=None)  # the first of equal ones
    count = sum(best_step is None or step > best_step for step in scores)
    return EarlyEnd(count, best_step) if 0 < patience <= count else None


def find_early_end(run: Run, scores: Mapping[int, float]) -> EarlyEnd | None:
    """Decides as `early_end` does, with the best checkpoint that the run folder stores."""
    best = kept_best(run.checkpoints_dir)
    return early_end(scores, run.train.early_stopping, best.step if best else None)


def stored_early_end(run: Run) -> EarlyEnd | None:
    """Decides whether a run has ended early at its newest checkpoint."""
    saved = saved_steps(run.checkpoints_dir)
    if not (run.train.early_stopping and saved and run.history_path.is_file()):
        return None
    rows = (row for row in read_history(run.history_path) if row["step"] <= saved[-1])
    return find_early_end(run, scores_by_step(rows))


def scores_by_step(rows: Iterable[Mapping[str, float]]) -> dict[int, float]:
    """Returns the mean IoU of the evaluations in a history, by step."""
    return {int(row["step"]): row["mean_iou"] for row in rows if "mean_iou" in row}


def check_evaluated(config: TrainConfig, *, evaluating: bool) -> None:
    """Checks that a run that may end early is evaluated.

    Raises:
      ValueError: it is not.
    """
    if config.early_stopping and not evaluating:
        raise ValueError(
            "early_stopping must be 0 without evaluation; got "
            f"{config.early_stopping}. Remedy: --mode=train_and_evaluate, or --early_stopping=0"
        )
