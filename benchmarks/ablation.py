"""Trains a recipe with and without each aid, over several seeds, and says what each one earns.

    python benchmarks/ablation.py --flagfile=experiments/FILE.flags --records_dir=R --work_dir=W
        [--seeds=1,2,3] [--only=CASE,...] [--classes=NAME,...]

Each case changes options of the flag file; an aid earns the mean over the seeds of the difference
to the same seed without it. Beside the mean IoU stand the IoU of the classes asked for.

The same command again goes on where it stopped, and prints the table of what is there.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig

BASE = "base"
CASES: dict[str, dict[str, Any]] = {
    BASE: {},
    "--class_balance=0.5": {"class_balance": 0.5},
    "--color_jitter=0.4": {"color_jitter": 0.4},
    "--clip_norm=1": {"clip_norm": 1.0},
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
    """Defines what the program takes."""
    values = flags.FlagValues()
    for name, help_text in (("records_dir", "records"), ("work_dir", "where the runs go")):
        flags.DEFINE_string(name, "", help_text, flag_values=values)
    flags.DEFINE_list("seeds", ["1", "2", "3"], "seeds of each case", flag_values=values)
    flags.DEFINE_list("only", list(CASES), "cases to run", flag_values=values)
    flags.DEFINE_list("classes", [], "classes whose IoU is shown too", flag_values=values)
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    flags.DEFINE_string("compile_cache_dir", "auto", "as in training", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Trains what is not trained yet and prints the table."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    records_dir = Path(cli.required(values, "records_dir"))
    work_dir = Path(cli.required(values, "work_dir"))
    cli.use_compile_cache(values)
    options = cli.given(values, ModelConfig, TrainConfig)
    predicting = PredictConfig(**cli.given(values, PredictConfig))
    unknown = sorted(set(values.only) - set(CASES))
    if unknown:
        raise ValueError(f"only must be of {', '.join(CASES)}; got {', '.join(unknown)}")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for seed in values.seeds:  # of all cases, before the next seed: a table early
        for case in dict.fromkeys([BASE, *values.only]):
            run_dir = work_dir / f"{case.strip('-').replace('=', '_')}-seed{seed}"
            own = {**options, **CASES[case], "seed": int(seed)}
            if case != BASE and own == {**options, "seed": int(seed)}:
                continue  # the flag file has it
            found.setdefault(case, {})[seed] = measure(run_dir, records_dir, own, predicting)
            cli.report(table(found, values.classes))
    return 0


def measure(
    run_dir: Path, records_dir: Path, options: Mapping[str, Any], predicting: PredictConfig
) -> dict[str, Any]:
    """Trains a run and scores it, or reads what was found before."""
    path = run_dir / "found.json"
    facts = {"records_dir": str(records_dir), "options": options, "predicting": vars(predicting)}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if any(stored[name] != fact for name, fact in facts.items()):
            raise ValueError(
                f"{path}: must have been found with the same options; they were others. Remedy: "
                "give another --work_dir"
            )
        return stored

    import keras

    from mapseg.checkpoints import read_history, training_secs
    from mapseg.estimator import Estimator
    from mapseg.files import write_text

    keras.backend.clear_session()
    estimator = Estimator(run_dir, cli.report)
    estimator.train(records_dir, evaluating=False, **options)
    secs = training_secs(read_history(estimator.run.history_path), estimator.run.train.batch_size)
    scores = estimator.evaluate(records_dir, "", predicting, "latest", panels=0)
    iou = dict(zip(scores.label_set.names, map(float, scores.iou), strict=True))
    found = {**facts, "mean_iou": scores.mean_iou, "iou": iou, "secs": secs}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def table(found: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Writes the table: what each case comes to, and what it earns over the base."""
    columns = ["mean IoU", *classes]
    head = [f"{c} | earns" for c in columns]
    lines = [f"| case | seeds | {' | '.join(head)} | training steps |"]
    lines.append("| --- " * (3 + 2 * len(columns)) + "|")
    base = figures(found[BASE], classes)
    rows = {case: figures(runs, classes) for case, runs in found.items()}
    for case, own in rows.items():
        cells = []
        for column in range(len(columns)):
            mine = 100 * own[:, column]
            earned = 100 * (own[:, column] - base[: len(own), column])
            cells.append(f"{mine.mean():.2f} ({mine.min():.2f} to {mine.max():.2f})")
            cells.append("" if case == BASE else f"{earned.mean():+.2f}")
        secs = np.mean([run["secs"] for run in found[case].values()])
        lines.append(f"| {case} | {len(own)} | {' | '.join(cells)} | {secs:.0f} s |")
    return "\n".join(lines)


def figures(runs: Mapping[str, Any], classes: Sequence[str]) -> np.ndarray:
    """[seeds, 1 + classes]: the mean IoU and that of some classes."""
    return np.array([[r["mean_iou"], *(r["iou"][c] for c in classes)] for r in runs.values()])


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
