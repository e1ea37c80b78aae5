"""Ablation study: trains a recipe with and without each option, over several seeds.

    python experiments/ablation.py --flagfile=experiments/FILE.flags --records_dir=R --work_dir=W
        [--seeds=1,2,3] [--only=CASE,...] [--classes=NAME,...]

The base case has the options of the flag file, of the flags after it, and the defaults; each other
case changes one of them. The column `gain` is the difference to the base case with the same seed,
averaged over the seeds, with its 95 % confidence interval (Student's t, which assumes that the
differences are normally distributed). The table has the mean IoU and the IoU of --classes.

Run the same command again to resume; it prints the table of the finished runs.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from measure import Outcome, all_options, differences, measure, seeds_of

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig
from mapseg.evaluation.stored import evaluation_path
from mapseg.labels import make_label_set

BASE = "base"
# 97.5 % quantiles of Student's t, by the number of seeds.
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
CASES: dict[str, dict[str, Any]] = {
    BASE: {},
    "--class_balance=0.5": {"class_balance": 0.5},
    "--color_jitter=0.4": {"color_jitter": 0.4},
    "--clip_norm=1": {"clip_norm": 1.0},
    "--loss=ce": {"loss": "ce"},
    "--loss=ce+lovasz": {"loss": "ce+lovasz"},
    "--loss=ohem": {"loss": "ohem"},
    "--loss=focal": {"loss": "focal"},
    "--class_weights": {"class_weights": True},
    "--label_smoothing=0.1": {"label_smoothing": 0.1},
    "--encoder=mobilenet_v2": {"encoder": "mobilenet_v2"},
    "--encoder=efficientnet_lite2": {"encoder": "efficientnet_lite2"},
    "--encoder=ddrnet23_slim": {
        "encoder": "ddrnet23_slim",
        "encoder_weights": "auto",
        "output_stride": 8,
    },
}


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    for name, help_text in (("records_dir", "records folder"), ("work_dir", "folder for the runs")):
        flags.DEFINE_string(name, "", help_text, flag_values=values)
    flags.DEFINE_list(
        "seeds", ["1", "2", "3"], "seeds; each case trains one run per seed", flag_values=values
    )
    flags.DEFINE_list("only", list(CASES), "cases to train; default: all", flag_values=values)
    flags.DEFINE_list("classes", [], "classes whose IoU is in the table", flag_values=values)
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    flags.DEFINE_alias("init_checkpoint", "init_from", flag_values=values)
    flags.DEFINE_string(
        "compile_cache_dir", "auto", "compile cache, as in train_main.py", flag_values=values
    )
    return values


def work(values: flags.FlagValues) -> int:
    """Trains the runs that are not finished and prints the table."""
    records_dir = Path(cli.required(values, "records_dir"))
    work_dir = Path(cli.required(values, "work_dir"))
    cli.use_compile_cache(values)
    options, split = all_options(values), values.eval_split
    predicting = PredictConfig(**cli.explicit_options(values, PredictConfig))
    unknown = sorted(set(values.only) - set(CASES))
    if unknown:
        raise ValueError(f"only must be of {', '.join(CASES)}; got {', '.join(unknown)}")

    from mapseg.data.manifest import read_manifest

    manifest = read_manifest(records_dir)
    manifest.split(split)  # fails before training, as the next line
    make_label_set(manifest.classes, options["label_set"]).select(values.classes)
    cases = _available_cases(values, options)
    outcomes: dict[str, list[Outcome]] = {}
    # All cases of a seed first, for an early table.
    runs = [(seed, case) for seed in seeds_of(values) for case in cases]
    with cli.stop_on_signal() as stopping:
        for seed, case in runs:
            run_dir = work_dir / f"{case.strip('-').replace('=', '_')}-seed{seed}"
            case_options = {**options, **CASES[case], "seed": seed}
            is_scored = evaluation_path(run_dir, split).is_file()
            outcome = measure(run_dir, records_dir, split, case_options, predicting, stopping)
            if outcome is None:
                return 130
            outcomes.setdefault(case, []).append(outcome)
            _check_alike(run_dir, outcomes[BASE][0], outcome)
            # Otherwise `auto` on another machine could be another precision.
            options["precision"] = outcome.facts["precision"]
            if not is_scored or (seed, case) == runs[-1]:
                cli.report(table(outcomes, values.classes))
    return 0


def _check_alike(run_dir: Path, first: Outcome, outcome: Outcome) -> None:
    """Rejects a run whose data, classes or precision are not those of the first one."""
    differing = differences(first.facts, outcome.facts)
    if differing:
        raise ValueError(
            f"{run_dir}: all runs must have the data, classes and precision of the first base run; "
            f"{differing}. Remedy: use another --work_dir"
        )


def _available_cases(values: flags.FlagValues, options: Mapping[str, Any]) -> list[str]:
    """Returns the base and the requested cases that differ from it and have initial weights.

    Raises:
      FileNotFoundError: the weights of the base are unavailable.
      ValueError: a case does not fit the other options; otherwise found when its turn comes.
    """
    from mapseg.model.pretrained import find_weights

    cases = []
    for case in dict.fromkeys([BASE, *values.only]):
        case_options = {**options, **CASES[case]}
        if case != BASE and case_options == options:
            cli.report(f"skipped: {case}: the base has this option already")
            continue
        TrainConfig(**{f.name: case_options.get(f.name, f.default) for f in fields(TrainConfig)})
        model = ModelConfig(**{f.name: case_options[f.name] for f in fields(ModelConfig)})
        try:
            find_weights(model)
        except FileNotFoundError as error:
            if case == BASE:
                raise
            cli.report(f"skipped: {case}: {error}")
        else:
            cases.append(case)
    return cases


def table(outcomes: Mapping[str, Sequence[Outcome]], classes: Sequence[str]) -> str:
    """Formats the table: the scores of each case, and the difference from the base."""
    columns = ["mean IoU", *classes]
    head = [f"{c} | gain" for c in columns]
    lines = [f"| case | seeds | {' | '.join(head)} | training steps |"]
    lines.append("| --- " * (3 + 2 * len(columns)) + "|")
    base = figures(outcomes[BASE], classes)
    rows = {case: figures(runs, classes) for case, runs in outcomes.items()}
    for case, scores in rows.items():
        cells = []
        for column in range(len(columns)):
            percent = 100 * scores[:, column]
            gain = 100 * (scores[:, column] - base[: len(scores), column])
            cells.append(f"{percent.mean():.2f} ({percent.min():.2f} to {percent.max():.2f})")
            cells.append("" if case == BASE else gain_text(gain))
        secs = np.mean([outcome.train_secs for outcome in outcomes[case]])
        lines.append(f"| {case} | {len(scores)} | {' | '.join(cells)} | {secs:.0f} s |")
    return "\n".join(lines)


def gain_text(gains: np.ndarray) -> str:
    """Formats the mean of gains [seeds] and, for 2 to 9 seeds, its 95 % confidence interval."""
    mean, quantile = gains.mean(), T_QUANTILES.get(len(gains))
    if quantile is None:
        return f"{mean:+.2f}"
    reach = quantile * gains.std(ddof=1) / np.sqrt(len(gains))
    return f"{mean:+.2f} ({mean - reach:+.2f} to {mean + reach:+.2f})"


def figures(outcomes: Sequence[Outcome], classes: Sequence[str]) -> np.ndarray:
    """Returns [seeds, 1 + classes]: the mean IoU and the IoU of each class."""
    places = [outcomes[0].scores.label_set.names.index(name) for name in classes]
    return np.array([[o.scores.mean_iou, *o.scores.iou[places]] for o in outcomes])


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
