"""Runs a recipe from the raw folder to its numbers: converts, trains with several seeds, scores.

    python experiments/recipes.py --recipe=camvid_scratch --data_dir=CAMVID --work_dir=W
        [--seeds=1,2,3] [--splits=val | --folds=5] [any option of training or prediction]

CAMVID has train/, val/ and perhaps test/, each with images/ and labels/; for the recipes of Vistas
it is a Vistas folder. With --folds=N the training split alone is used: it is cut into N parts of
neighbouring names, as frames of one drive have them; each run trains without one part and is scored
on it, and the confusion matrices of all N are added up. So options are chosen without a look at the
validation images.

W/results.json and W/results.md have the scores of each seed, with mean and spread, and by class;
those of other calls with other seeds or splits are added, and refused if their options, precision
or data differ. The same command again goes on where it stopped, also in the middle of a run.
"""

# Long: one command from raw folder to tables, read from top to bottom.
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from measure import Outcome, all_options, measure, protocol, seeds_of

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig

if TYPE_CHECKING:
    from data_prep.sources import Source, SourceSplit

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
    flags.DEFINE_alias("init_checkpoint", "init_from", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Converts, trains and scores what is not done yet; prints and writes the results."""
    cli.required(values, "recipe")
    recipe, work_dir = RECIPES[values.recipe], Path(cli.required(values, "work_dir"))
    data_dir = Path(cli.required(values, "data_dir"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.use_compile_cache(values)
    options, seeds = all_options(values), seeds_of(values)
    predicting = PredictConfig(**cli.given(values, PredictConfig))
    sources = find_sources(recipe, data_dir)
    jobs = plan(values, sources)
    results = Results(work_dir, protocol(options, predicting))
    for part in {part.name: part for parts in jobs.values() for part in parts}.values():
        convert(part, work_dir, recipe)
    with cli.stop_on_signal() as stopping:
        for seed in seeds:
            for table, parts in jobs.items():
                outcomes = []
                for part in parts:
                    folder, own = work_dir / part.name, {**options, "seed": seed}
                    found = measure(
                        folder / f"seed{seed}",
                        folder / "records",
                        part.split,
                        own,
                        predicting,
                        stopping,
                    )
                    if found is None:
                        return 130
                    outcomes.append(found)
                results.add(table, seed, add_up(outcomes))
                cli.report(results.text())
    return 0


@dataclass(frozen=True)
class Part:
    """One run of a seed.

    Attributes:
      name: its folder in the work folder; empty is that itself.
      sources: what is converted for it.
      split: what it is scored on.
    """

    name: str
    sources: Sequence["Source"]
    split: str


def plan(values: flags.FlagValues, sources: Sequence["Source"]) -> dict[str, list[Part]]:
    """Says which runs a seed has, by the name of the table that their pixels are added up for.

    Raises:
      ValueError: splits that there are not, or folds that there cannot be.
    """
    known = {split.name: split for source in sources for split in source.splits}
    asked = [] if values.folds else values.splits or [values.eval_split]
    for name in (values.train_split, *asked):
        if name not in known:
            raise ValueError(
                f"{values.data_dir}: splits must be of {', '.join(known)}; got {name}. Remedy: "
                "--splits=..., or put the images there"
            )
    if not values.folds:
        return {split: [Part("", sources, split)] for split in asked}
    pairs = len(known[values.train_split].pairs)
    if not 2 <= values.folds <= pairs:
        raise ValueError(
            f"folds must be 0 (off), or from 2 to the {pairs} pairs of {values.train_split}; got "
            f"{values.folds}"
        )
    if values.splits:
        raise ValueError("splits must not be given with --folds, which scores what is held out")
    table = f"{HELD_OUT}_of_{values.folds}"
    return {
        table: [
            Part(
                f"fold{i + 1}of{values.folds}",
                [fold(sources[0], known[values.train_split], i, values.folds)],
                HELD_OUT,
            )
            for i in range(values.folds)
        ]
    }


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


def fold(source: "Source", training: "SourceSplit", number: int, folds: int) -> "Source":
    """Splits the training pairs: of as many equal parts in a row, the `number`-th is held out."""
    kept, held = (
        tuple(
            pair
            for i, pair in enumerate(training.pairs)
            if (i * folds // len(training.pairs) == number) is out
        )
        for out in (False, True)
    )
    parts = (replace(training, pairs=kept), replace(training, name=HELD_OUT, pairs=held))
    return replace(source, splits=parts)


def convert(part: Part, work_dir: Path, recipe: Recipe) -> None:
    """Converts to records, unless that is done."""
    from data_prep.conversion import build_records
    from data_prep.convert import Resize

    for source in part.sources:
        build_records(
            source,
            work_dir / part.name / "records",
            Resize(resize_to=recipe.resize_to),
            workers=0,
            progress=cli.report,
        )


def add_up(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one seed: of its run, or of all its folds together."""
    from mapseg.evaluation.scores import Scores

    first = outcomes[0].scores
    scores = Scores(np.sum([o.scores.confusion for o in outcomes], axis=0), first.label_set)
    secs = sum(o.train_secs for o in outcomes)
    facts = {name: [o.facts[name] for o in outcomes] for name in outcomes[0].facts}
    return {"train_secs": secs, "facts": facts, **scores.to_json()}


class Results:
    """W/results.json and W/results.md: figures by table and seed."""

    def __init__(self, work_dir: Path, measured_by: Mapping[str, Any]):
        """Reads those of earlier calls.

        Raises:
          ValueError: they were measured otherwise, or the file is damaged.
        """
        self._path = work_dir / "results.json"
        self._protocol = dict(measured_by)
        self._tables: dict[str, dict[str, dict[str, Any]]] = {}
        self._read()

    def _read(self) -> None:
        if not self._path.is_file():
            return
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            former, self._tables = dict(stored["protocol"]), dict(stored["tables"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._path}: must be what this program wrote; {error!r}. Remedy: remove it, and "
                "what is trained is read again"
            ) from error
        differing = _differing(former, self._protocol)
        if differing:
            raise ValueError(
                f"{self._path}: all seeds must be trained and scored with the same options; "
                f"{differing}. Remedy: give another --work_dir, or, if only options of "
                "prediction differ, remove this file"
            )

    def add(self, table: str, seed: int, figures: dict[str, Any]) -> None:
        """Writes what a seed came to beside what is there, as JSON and as tables.

        Raises:
          ValueError: it came about otherwise than those that are there.
        """
        from mapseg.files import locked, write_text

        with locked(self._path.with_name(".results.lock")):
            self._read()  # another process may have added its seeds
            seeds = self._tables.setdefault(table, {})
            for other, known in seeds.items():
                differing = _differing(known["facts"], figures["facts"])
                if other != str(seed) and differing:
                    raise ValueError(
                        f"{self._path}: seed {seed} must come from the same data and arithmetic "
                        f"as seed {other} there; {differing}. Remedy: give another --work_dir"
                    )
            seeds[str(seed)] = figures
            self._tables[table] = dict(sorted(seeds.items(), key=lambda item: int(item[0])))
            facts = {"protocol": self._protocol, "tables": self._tables}
            write_text(self._path, json.dumps(facts, indent=1) + "\n")
            write_text(self._path.with_suffix(".md"), self.text())

    def text(self) -> str:
        """All tables."""
        return "\n\n".join(table(name, seeds) for name, seeds in self._tables.items()) + "\n"


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name}={there.get(name)} there, {name}={here.get(name)} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    )


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
