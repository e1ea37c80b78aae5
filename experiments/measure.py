"""Shared by recipes and ablations: trains and scores a run, once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig, to_json

if TYPE_CHECKING:
    from mapseg.evaluation.scores import Scores


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
      scores: on the requested split.
      train_secs: duration of its training steps.
      facts: JSON values that must agree between runs besides the options: precision, data, classes,
        initial weights.
    """

    scores: "Scores"
    train_secs: float
    facts: dict[str, Any]


def all_options(values: flags.FlagValues) -> dict[str, Any]:
    """Returns every option of ModelConfig and TrainConfig, set or default, except the seed.

    Listing the defaults too means that a run started with other options is rejected, even if this
    command omits an option. Unless set, schedule_steps equals steps, so that a run with more steps
    does not continue at the final learning rate of a shorter one.
    """
    model = ModelConfig(**cli.explicit_options(values, ModelConfig))
    train = TrainConfig(**cli.explicit_options(values, TrainConfig))
    options = {**to_json(model), **to_json(train)}
    options["schedule_steps"] = train.schedule_steps or train.steps
    del options["seed"]
    return options


def protocol(options: Mapping[str, Any], predicting: PredictConfig) -> dict[str, Any]:
    """Returns the options that scores must share to be compared or averaged."""
    names = {f.name for kind in (ModelConfig, TrainConfig) for f in fields(kind) if _decides(f)}
    return {**{k: v for k, v in options.items() if k in names}, **to_json(predicting)}


def _decides(option: Any) -> bool:
    return option.metadata["identity"] or option.name in ("steps", "accumulate_steps")


def seeds_of(values: flags.FlagValues) -> list[int]:
    """Returns the requested seeds.

    Raises:
      ValueError: they are not distinct integers, or --seed is used in place of --seeds.
    """
    if values["seed"].present:
        raise ValueError("seed must be given by --seeds here, a comma-separated list")
    if not values.seeds or not all(text.isdecimal() for text in values.seeds):
        raise ValueError(
            f"seeds must be comma-separated integers of 0 or more; got {','.join(values.seeds)!r}. "
            "Remedy: --seeds=1,2,3"
        )
    seeds = [int(text) for text in values.seeds]
    if len({*seeds}) < len(seeds):  # the same run twice would count as two
        raise ValueError(f"seeds must be distinct; got {','.join(values.seeds)}")
    return seeds


def differences(stored: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describes the values that differ, by name; empty if none does."""
    return "; ".join(
        f"{name}={stored.get(name)} stored, {name}={new.get(name)} now"
        for name in sorted(stored.keys() | new.keys())
        if stored.get(name) != new.get(name)
    )


def train(
    run_dir: Path,
    records_dir: Path,
    options: Mapping[str, Any],
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains a run or resumes it, unless that is done; returns false if it was stopped first.

    Raises:
      ValueError: the folder has a run with other options.
    """
    if stopping():
        return False

    import keras

    from mapseg.estimator import Estimator

    keras.backend.clear_session()
    estimator = Estimator(run_dir, cli.report)
    estimator.train(records_dir, evaluating=False, stopping=stopping, **options)
    return not stopping()


def trained_secs(run_dir: Path) -> float:
    """Returns the duration of a run's training steps."""
    from mapseg.runs.folder import open_run
    from mapseg.runs.history import read_history, training_secs

    run = open_run(run_dir)
    return training_secs(read_history(run.history_path), run.train.batch_size)


def measure(
    run_dir: Path,
    records_dir: Path,
    split: str,
    options: Mapping[str, Any],
    predicting: PredictConfig,
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Trains a run or resumes it, and scores its last checkpoint, unless both are done.

    Args:
      run_dir: the run's folder; a later call resumes from it.
      records_dir: a folder made by `data_prep.build_records`.
      split: the split to score.
      options: all fields of ModelConfig and TrainConfig.
      predicting: options of prediction for the scores.
      stopping: returns whether to stop; called at the start and after each step.

    Returns:
      The result; None if the run was stopped first.

    Raises:
      ValueError: the folder has a run with other options.
    """
    if not train(run_dir, records_dir, options, stopping):
        return None

    from mapseg.data.manifest import read_manifest
    from mapseg.estimator import Estimator

    estimator = Estimator(run_dir, cli.report)
    scores = estimator.evaluate(
        records_dir, split, predicting, "latest", details=False, again=False
    )
    run = estimator.run
    facts = {
        "precision": run.train.precision,
        **({"initial weights": run.start_sha256} if run.start_sha256 else {}),
        "trained on records": run.records_digest,
        "scored on records": read_manifest(records_dir).split(split).digest,
        "classes": list(run.label_set.names),
    }
    return Outcome(scores, trained_secs(run_dir), facts)
