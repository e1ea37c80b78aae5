"""Runs a recipe from the raw folder to its numbers: converts, trains with several seeds, scores.

    python experiments/recipes.py --recipe=camvid_scratch --data_dir=CAMVID --work_dir=W
        [--seeds=1,2,3] [--splits=val] [--folds=0] [any option of train_main.py]

CAMVID has train/, val/ and perhaps test/, each with images/ and labels/; for the recipes of Vistas
it is a Vistas folder. With --folds=N the training split alone is used: each run trains without one
N-th of it and is scored on that, and the confusion matrices of all N are added up; so options are
chosen without a look at the validation images.

W/results.json and W/results.md have the scores of each seed, with mean and spread, and by class;
those of later calls with other seeds or splits are added. The same command again goes on where it
stopped, also in the middle of a run.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig

if TYPE_CHECKING:
    from data_prep.sources import Source
    from mapseg.scores import Scores

FOLDER = Path(__file__).parent
CAMVID_SPLITS = ("train", "val", "test")
HELD_OUT = "held_out"


@dataclass(frozen=True)
class Recipe:
    """What a recipe needs beside its flag file, which has the same name.

    Attributes:
      vistas: the data is a Vistas folder, else folders of pairs with the classes of CamVid.
      resize_to: (height, width) that all samples are stored at.
    """

    vistas: bool = False
    resize_to: tuple[int, int] | None = None


RECIPES = {
    "camvid_scratch": Recipe(),
    "camvid_pretrained": Recipe(),
    "vistas_sample": Recipe(vistas=True, resize_to=(384, 512)),
    "vistas_sample_lane": Recipe(vistas=True, resize_to=(384, 512)),
}


def define_flags() -> flags.FlagValues:
    """Defines what the program takes."""
    values = flags.FlagValues()
    flags.DEFINE_enum("recipe", None, list(RECIPES), "which recipe", flag_values=values)
    flags.DEFINE_string("data_dir", "", "the raw data", flag_values=values)
    flags.DEFINE_string("work_dir", "", "where records, runs and results go", flag_values=values)
    flags.DEFINE_list("seeds", ["1", "2", "3"], "a run for each", flag_values=values)
    flags.DEFINE_list("splits", [], "to score; default: the recipe's", flag_values=values)
    flags.DEFINE_integer("folds", 0, "cross-validate with so many", flag_values=values)
    flags.DEFINE_string("compile_cache_dir", "auto", "as in training", flag_values=values)
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    return values


def work(values: flags.FlagValues) -> int:
    """Converts, trains and scores what is not done yet; prints and writes the results."""
    cli.required(values, "recipe")
    recipe, work_dir = RECIPES[values.recipe], Path(cli.required(values, "work_dir"))
    data_dir = Path(cli.required(values, "data_dir"))
    if values.folds == 1 or values.folds < 0:
        raise ValueError(f"folds must be 0 (off), 2 or more; got {values.folds}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.use_compile_cache(values)
    options = cli.given(values, ModelConfig, TrainConfig)
    predicting = PredictConfig(**cli.given(values, PredictConfig))
    splits = values.splits or [values.eval_split]
    sources = find_sources(recipe, data_dir)
    results: dict[str, dict[str, Any]] = {split: {} for split in splits}
    with cli.stop_on_signal() as stopping:
        for seed in values.seeds:
            own = {**options, "seed": int(seed)}
            if values.folds:
                folds = [
                    fold(sources[0], values.train_split, i, values.folds)
                    for i in range(values.folds)
                ]
                names = [f"fold{i + 1}of{values.folds}" for i in range(values.folds)]
                own["eval_split"], scored = HELD_OUT, [HELD_OUT]
            else:
                folds, names, scored = [sources], [""], splits
            found: dict[str, list[Outcome]] = {split: [] for split in scored}
            for name, parts in zip(names, folds, strict=True):
                records_dir = convert(parts, work_dir / name / "records", recipe)
                run_dir = work_dir / name / f"seed{seed}"
                for split in scored:
                    outcome = run(run_dir, records_dir, split, own, predicting, stopping)
                    if outcome is None:
                        return 130
                    found[split].append(outcome)
            for split, outcomes in found.items():
                results.setdefault(split, {})[seed] = add_up(outcomes)
            write(work_dir, {k: v for k, v in results.items() if v})
    return 0


def find_sources(recipe: Recipe, data_dir: Path) -> list["Source"]:
    """Finds the raw splits: the first source is that of training."""
    from data_prep.sources import find_folders, find_vistas

    if recipe.vistas:
        return [find_vistas(data_dir)]
    found = [
        find_folders(folder / "images", folder / "labels", FOLDER / "camvid.json", folder.name)
        for folder in (data_dir / split for split in CAMVID_SPLITS)
        if folder.is_dir()
    ]
    if not found:
        raise FileNotFoundError(
            f"{data_dir}: data_dir must have {', '.join(CAMVID_SPLITS)}, each with images and "
            "labels; none is there"
        )
    return found


def fold(source: "Source", train_split: str, number: int, folds: int) -> list["Source"]:
    """Splits the training pairs: every `folds`-th, from `number` on, is held out."""
    (training,) = (split for split in source.splits if split.name == train_split)
    kept, held = (
        tuple(p for i, p in enumerate(training.pairs) if (i % folds == number) is out)
        for out in (False, True)
    )
    parts = (replace(training, pairs=kept), replace(training, name=HELD_OUT, pairs=held))
    return [replace(source, splits=parts)]


def convert(sources: Sequence["Source"], records_dir: Path, recipe: Recipe) -> Path:
    """Converts to records, unless that is done."""
    from data_prep.build_records import build_records
    from data_prep.convert import Resize

    for source in sources:
        resize = Resize(resize_to=recipe.resize_to)
        build_records(source, records_dir, resize, workers=0, progress=cli.report)
    return records_dir


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its scores, and the seconds of its training steps."""

    scores: "Scores"
    train_secs: float


def run(
    run_dir: Path,
    records_dir: Path,
    split: str,
    options: Mapping[str, Any],
    predicting: PredictConfig,
    stopping: Callable[[], bool],
) -> Outcome | None:
    """Trains a run, or goes on with it, and scores its last checkpoint; None where stopped."""
    import keras

    from mapseg.checkpoints import read_history, training_secs
    from mapseg.estimator import Estimator

    keras.backend.clear_session()
    estimator = Estimator(run_dir, cli.report)
    estimator.train(records_dir, evaluating=False, stopping=stopping, **options)
    if stopping():
        return None
    scores = estimator.evaluate(records_dir, split, predicting, "latest")
    rows = read_history(estimator.run.history_path)
    return Outcome(scores, training_secs(rows, estimator.run.train.batch_size))


def add_up(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one seed: of its run, or of all its folds together."""
    from mapseg.scores import Scores

    first = outcomes[0].scores
    scores = Scores(sum(o.scores.confusion for o in outcomes), first.label_set)
    secs = sum(o.train_secs for o in outcomes)
    return {"train_secs": secs, **scores.to_json()}


def write(work_dir: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints and writes the results so far, beside those of other splits and seeds."""
    from mapseg.files import write_text

    path = work_dir / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results = {
        split: {**stored.get(split, {}), **found.get(split, {})} for split in {**stored, **found}
    }
    text = "\n\n".join(table(split, seeds) for split, seeds in results.items()) + "\n"
    write_text(path, json.dumps(results, indent=1) + "\n")
    write_text(work_dir / "results.md", text)
    cli.report(text)


def table(split: str, seeds: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes the scores of a split: a column for each seed, then mean and spread."""
    lines = [
        f"| {split} | {' | '.join(f'seed {s}' for s in seeds)} | mean | lowest to highest |",
        "| --- " * (len(seeds) + 3) + "|",
    ]
    for name in ("mean_iou", "pixel_accuracy"):
        lines.append(_row(name.replace("_", " "), [found[name] for found in seeds.values()]))
    for name in next(iter(seeds.values()))["iou"]:
        values = [found["iou"][name] for found in seeds.values()]
        if None not in values:
            lines.append(_row(f"IoU {name}", values))
    secs = [found["train_secs"] for found in seeds.values()]
    cells = " | ".join(f"{s:.0f} s" for s in secs)
    lines.append(
        f"| training steps | {cells} | {np.mean(secs):.0f} s | {min(secs):.0f} to {max(secs):.0f} |"
    )
    return "\n".join(lines)


def _row(name: str, values: Sequence[float]) -> str:
    cells = " | ".join(f"{v:.2%}" for v in values)
    return f"| {name} | {cells} | {np.mean(values):.2%} | {min(values):.2%} to {max(values):.2%} |"


def main(argv: Sequence[str]) -> int:
    """Runs the command, with the options of the recipe's flag file; returns its exit code."""
    asked = flags.FlagValues()
    flags.DEFINE_string("recipe", "", "which recipe", flag_values=asked)
    with contextlib.suppress(flags.Error):  # told below, with all other flags
        asked(argv, known_only=True)
    chosen = [f"--flagfile={FOLDER / asked.recipe}.flags"] if asked.recipe in RECIPES else []
    return cli.run(work, define_flags(), [argv[0], *chosen, *argv[1:]], __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
