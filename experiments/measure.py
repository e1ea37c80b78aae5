"""What recipes and ablations have in common: a run is trained and scored, once."""

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
    """What a run came to.

    Attributes:
      scores: on the split that was asked for.
      train_secs: the seconds of its training steps.
      facts: what options do not tell of how it came about, as JSON has it.
    """

    scores: "Scores"
    train_secs: float
    facts: dict[str, Any]


def all_options(values: flags.FlagValues) -> dict[str, Any]:
    """Returns every option of ModelConfig and TrainConfig, given or not, the seed apart.

    So a run that was begun with another command is refused, also where this one leaves an option
    out. The schedule ends with the steps, unless it was given: a run does not go on at the rate at
    which a shorter one has ended.
    """
    model = ModelConfig(**cli.given(values, ModelConfig))
    train = TrainConfig(**cli.given(values, TrainConfig))
    options = {**to_json(model), **to_json(train)}
    options["schedule_steps"] = train.schedule_steps or train.steps
    del options["seed"]
    return options


def protocol(options: Mapping[str, Any], predicting: PredictConfig) -> dict[str, Any]:
    """Returns what scores must have in common to be compared or averaged."""
    names = {f.name for kind in (ModelConfig, TrainConfig) for f in fields(kind) if _decides(f)}
    return {**{k: v for k, v in options.items() if k in names}, **to_json(predicting)}


def _decides(option: Any) -> bool:
    return option.metadata["identity"] or option.name in ("steps", "accumulate_steps")


def seeds_of(values: flags.FlagValues) -> list[int]:
    """Returns the seeds that were asked for.

    Raises:
      ValueError: not whole numbers, or not given by --seeds.
    """
    if values["seed"].present:
        raise ValueError("seed must be given by --seeds here, a comma-separated list")
    if not values.seeds or not all(text.isdecimal() for text in values.seeds):
        raise ValueError(
            f"seeds must be whole numbers, joined by commas; got {','.join(values.seeds)!r}"
        )
    return [int(text) for text in values.seeds]


def measure(
    run_dir: Path,
    records_dir: Path,
    split: str,
    options: Mapping[str, Any],
    predicting: PredictConfig,
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Trains a run, or goes on with it, and scores its last checkpoint, unless both are done.

    Args:
      run_dir: the run's folder; a later call finds there what is done.
      records_dir: a folder made by `data_prep.build_records`.
      split: to score.
      options: all fields of ModelConfig and TrainConfig.
      predicting: how images are scored.
      stopping: asked before all, and after each step.

    Returns:
      What it came to; None where it was stopped before.

    Raises:
      ValueError: the folder has a run of other options.
    """
    if stopping():
        return None

    import keras

    from mapseg.data.manifest import read_manifest
    from mapseg.estimator import Estimator
    from mapseg.runs.history import read_history, training_secs

    keras.backend.clear_session()
    estimator = Estimator(run_dir, cli.report)
    estimator.train(records_dir, evaluating=False, stopping=stopping, **options)
    if stopping():
        return None
    scores = estimator.evaluate(records_dir, split, predicting, "latest", again=False)
    run = estimator.run
    facts = {
        "precision": run.train.precision,
        "trained on records": run.records_digest,
        "scored on records": read_manifest(records_dir).split(split).digest,
        "classes": list(run.label_set.names),
    }
    secs = training_secs(read_history(run.history_path), run.train.batch_size)
    return Outcome(scores, secs, facts)
