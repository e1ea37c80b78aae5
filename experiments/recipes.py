"""Runs a recipe from raw data to results: converts, trains with several seeds, scores.

    python experiments/recipes.py --recipe=camvid_scratch --data_dir=CAMVID --work_dir=W
        [--seeds=1,2,3] [--splits=val | --folds=5] [any option of training or prediction]

CAMVID contains train/, val/ and optionally test/, each with images/ and labels/. For the recipes of
Vistas it is a Vistas v1.2 folder, of which they use the images listed in vistas_sample.json.
--folds=N cross-validates on the training split only: it is divided
into N parts of neighbouring names, because frames of one drive have neighbouring names. Each run
trains without one part and is scored on it, and the N confusion matrices are summed. This way
options are chosen without the validation images.

W/results.json and W/results.md hold the scores of each seed, their mean and range, and the IoU of
each class. Results of calls with other seeds or splits are added; they are rejected if their
options, precision or data differ. Run the same command again to resume, also in the middle of a
run.
"""

# Long: one command from raw data to tables, read from top to bottom.
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from measure import (
    Outcome,
    all_options,
    differences,
    measure,
    protocol,
    seeds_of,
    train,
    trained_secs,
)

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig

if TYPE_CHECKING:
    from data_prep.sources import Source, SourceSplit

FOLDER = Path(__file__).parent
CAMVID_SPLITS = ("train", "val", "test")
HELD_OUT = "held_out"


@dataclass(frozen=True)
class Recipe:
    """Settings of a recipe that are not in the flag file of the same name.

    Attributes:
      keys: a JSON file of the keys to use of each split of a Vistas folder; if empty, the data are
        folders of pairs with the classes of CamVid.
      resize_to: stored (height, width) of all samples.
      start: flag file of a first run on the same data, whose weights are the initial ones. Options
        of the command line do not change it.
    """

    keys: str = ""
    resize_to: tuple[int, int] | None = None
    start: str = ""


VISTAS_SAMPLE = Recipe(keys="vistas_sample.json", resize_to=(384, 512))
RECIPES = {
    "camvid_scratch": Recipe(),
    "camvid_pretrained": Recipe(),
    "cpu_camvid": Recipe(start="cpu_camvid_start.flags"),
    "vistas_sample": VISTAS_SAMPLE,
    "vistas_sample_lane": VISTAS_SAMPLE,
    "cpu_vistas_sample": VISTAS_SAMPLE,
    "cpu_vistas_sample_lane": VISTAS_SAMPLE,
}


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_enum("recipe", None, list(RECIPES), "recipe to run", flag_values=values)
    flags.DEFINE_string("data_dir", "", "folder of the raw dataset", flag_values=values)
    flags.DEFINE_string("work_dir", "", "folder for records, runs and results", flag_values=values)
    flags.DEFINE_list(
        "seeds", ["1", "2", "3"], "seeds; one run is trained per seed", flag_values=values
    )
    flags.DEFINE_list("splits", [], "splits to score; default: the recipe's", flag_values=values)
    flags.DEFINE_integer("folds", 0, "number of cross-validation folds; 0: off", flag_values=values)
    flags.DEFINE_string(
        "compile_cache_dir", "auto", "compile cache, as in train_main.py", flag_values=values
    )
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    flags.DEFINE_alias("init_checkpoint", "init_from", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Converts, trains and scores what is missing; prints and writes the results."""
    cli.required(values, "recipe")
    recipe, work_dir = RECIPES[values.recipe], Path(cli.required(values, "work_dir"))
    data_dir = Path(cli.required(values, "data_dir"))
    cli.use_compile_cache(values)
    options, seeds = all_options(values), seeds_of(values)
    predicting = PredictConfig(**cli.explicit_options(values, PredictConfig))
    sources = find_sources(recipe, data_dir)
    jobs = plan(values, sources)
    first = start_options(recipe)
    started = {"start": protocol(first, PredictConfig())} if first else {}
    results = Results(work_dir, {**protocol(options, predicting), **started})
    for part in {part.name: part for parts in jobs.values() for part in parts}.values():
        convert(part, work_dir, recipe)
    with cli.stop_on_signal() as stopping:
        for seed in seeds:
            for table, parts in jobs.items():
                outcomes = []
                for part in parts:
                    folder = work_dir / part.name
                    run_dir, records_dir = folder / f"seed{seed}", folder / "records"
                    secs, case = 0.0, {**options, "seed": seed}
                    if first:
                        start_dir = folder / f"seed{seed}-start"
                        if not train(start_dir, records_dir, {**first, "seed": seed}, stopping):
                            return 130
                        secs = trained_secs(start_dir)
                        case["init_from"] = start_path(run_dir, start_dir)
                    outcome = measure(run_dir, records_dir, part.split, case, predicting, stopping)
                    if outcome is None:
                        return 130
                    if first:
                        outcome.facts.pop("initial weights", None)  # those of this seed
                    outcomes.append(replace(outcome, train_secs=secs + outcome.train_secs))
                results.add(table, seed, add_up(outcomes))
                cli.report(results.text())
    return 0


@dataclass(frozen=True)
class Part:
    """One run of a seed.

    Attributes:
      name: its subfolder of the work folder; empty for the work folder itself.
      sources: the data to convert for it.
      split: the split that it is scored on.
    """

    name: str
    sources: Sequence["Source"]
    split: str


def start_options(recipe: Recipe) -> dict[str, Any]:
    """Returns every option of a recipe's first run except the seed; empty if there is none."""
    if not recipe.start:
        return {}
    values = define_flags()
    values(["recipes.py", f"--flagfile={FOLDER / recipe.start}"])
    return all_options(values)


def start_path(run_dir: Path, start_dir: Path) -> str:
    """Returns the path of a run's first run: as stored, if it began at another --work_dir.

    The work folder may have been moved since, or be given by a relative path.
    """
    from mapseg.runs.checkpoints import saved_steps
    from mapseg.runs.folder import open_run

    if saved_steps(run_dir / "checkpoints"):
        stored = open_run(run_dir).train.init_from
        if Path(stored).name == start_dir.name:
            return stored
    return str(start_dir)


def plan(values: flags.FlagValues, sources: Sequence["Source"]) -> dict[str, list[Part]]:
    """Returns the runs of a seed, by the name of the table that sums their pixels.

    Raises:
      ValueError: a split does not exist, or the number of folds is invalid.
    """
    known = {split.name: split for source in sources for split in source.splits}
    if values.train_split not in known:
        raise FileNotFoundError(
            f"{values.data_dir}: data_dir must contain {values.train_split}, which is trained on; "
            f"got {', '.join(known)}. Remedy: put it there, with images and labels"
        )
    scored = [] if values.folds else values.splits or [values.eval_split]
    for name in scored:
        if name not in known:
            raise ValueError(
                f"{values.data_dir}: splits must be among {', '.join(known)}; got {name}. Remedy: "
                "choose other --splits, or put the images and labels there"
            )
    if not values.folds:
        return {split: [Part("", sources, split)] for split in scored}
    pairs = len(known[values.train_split].pairs)
    if not 2 <= values.folds <= pairs:
        raise ValueError(
            f"folds must be 0 (off), or from 2 to the {pairs} pairs of {values.train_split}; got "
            f"{values.folds}. Remedy: choose another --folds"
        )
    if values.splits:
        raise ValueError("splits must not be set with --folds, which scores the held-out parts")
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
    """Finds the raw splits; the first source has the training split."""
    from data_prep.sources import find_folders, find_vistas

    if recipe.keys:
        keys = json.loads((FOLDER / recipe.keys).read_text(encoding="utf-8"))
        return [choose(find_vistas(data_dir, "v1.2", skip=True), keys, data_dir)]
    sources = [
        find_folders(folder / "images", folder / "labels", FOLDER / "camvid.json", folder.name)
        for folder in (data_dir / split for split in CAMVID_SPLITS)
        if folder.is_dir()
    ]
    if not sources:
        raise FileNotFoundError(
            f"{data_dir}: data_dir must contain {', '.join(CAMVID_SPLITS)}, each with images and "
            "labels; got none of them"
        )
    return sources


def choose(source: "Source", keys: Mapping[str, Sequence[str]], data_dir: Path) -> "Source":
    """Reduces a source to the splits and pairs that `keys` lists.

    Raises:
      FileNotFoundError: one of them does not exist.
    """
    found = {split.name: {pair.key for pair in split.pairs} for split in source.splits}
    for name, wanted in keys.items():
        if missing := sorted({*wanted} - found.get(name, set())):
            raise FileNotFoundError(
                f"{data_dir}: data_dir must contain the recipe's {len(wanted)} {name} images; "
                f"{len(missing)} are missing, the first is {name}/images/{missing[0]} or its label"
            )
    splits = tuple(
        replace(
            split,
            pairs=tuple(pair for pair in split.pairs if pair.key in keys[split.name]),
            left_out={},  # none of the listed pairs
        )
        for split in source.splits
        if split.name in keys
    )
    return replace(source, splits=splits)


def fold(source: "Source", training: "SourceSplit", number: int, folds: int) -> "Source":
    """Divides the training pairs into `folds` consecutive parts and holds out part `number`."""
    train_pairs, held_out_pairs = (
        tuple(
            pair
            for i, pair in enumerate(training.pairs)
            if (i * folds // len(training.pairs) == number) is held_out
        )
        for held_out in (False, True)
    )
    parts = (
        replace(training, pairs=train_pairs),
        replace(training, name=HELD_OUT, pairs=held_out_pairs),
    )
    return replace(source, splits=parts)


def convert(part: Part, work_dir: Path, recipe: Recipe) -> None:
    """Converts the sources of a run to records, unless that is done."""
    from data_prep.audit import audit_lines
    from data_prep.conversion import build_records
    from data_prep.convert import Resize

    records_dir = work_dir / part.name / "records"
    for source in part.sources:
        resize = Resize(resize_to=recipe.resize_to)
        build_records(source, records_dir, resize, workers=0, progress=cli.report)
    cli.report("\n".join(audit_lines(records_dir)))


def add_up(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns the figures of one seed: of its run, or of all its folds together."""
    from mapseg.evaluation.scores import Scores

    first = outcomes[0].scores
    scores = Scores(np.sum([o.scores.confusion for o in outcomes], axis=0), first.label_set)
    secs = sum(o.train_secs for o in outcomes)
    facts = {name: [o.facts[name] for o in outcomes] for name in outcomes[0].facts}
    return {"train_secs": secs, "facts": facts, **scores.to_json()}


class Results:
    """W/results.json and W/results.md: figures by table and seed."""

    def __init__(self, work_dir: Path, measured_by: Mapping[str, Any]):
        """Reads the results of earlier calls.

        Raises:
          ValueError: they were measured with other options, or the file is damaged.
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
            stored_protocol, self._tables = {**stored["protocol"]}, {**stored["tables"]}
            for seeds in self._tables.values():
                _ = [({**figures["facts"]}, int(seed)) for seed, figures in seeds.items()]
            self.text()  # needs all other figures
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._path}: must be as this program wrote it; got {error!r}. Remedy: remove "
                "it; the results of finished runs are read again"
            ) from error
        differing = differences(stored_protocol, self._protocol)
        if differing:
            raise ValueError(
                f"{self._path}: all seeds must be trained and scored with the same options; "
                f"{differing}. Remedy: use another --work_dir, or, if only options of "
                "prediction differ, remove this file"
            )

    def add(self, table: str, seed: int, figures: dict[str, Any]) -> None:
        """Adds the figures of a seed to the stored ones and writes them as JSON and tables.

        Raises:
          ValueError: its data, classes, precision or initial weights differ from those of the
            stored seeds.
        """
        from mapseg.files import locked, write_text

        with locked(self._path.with_name(".results.lock")):
            self._read()  # another process may have added its seeds
            seeds = self._tables.setdefault(table, {})
            for other_seed, stored in seeds.items():
                differing = differences(stored["facts"], figures["facts"])
                if other_seed != str(seed) and differing:
                    raise ValueError(
                        f"{self._path}: seed {seed} must have the data, precision and initial "
                        f"weights of the stored seed {other_seed}; {differing}. Remedy: use "
                        "another --work_dir"
                    )
            seeds[str(seed)] = figures
            self._tables[table] = dict(sorted(seeds.items(), key=lambda item: int(item[0])))
            facts = {"protocol": self._protocol, "tables": self._tables}
            write_text(self._path, json.dumps(facts, indent=1) + "\n")
            write_text(self._path.with_suffix(".md"), self.text())

    def text(self) -> str:
        """Returns all tables in Markdown."""
        return "\n\n".join(table(name, seeds) for name, seeds in self._tables.items()) + "\n"


def table(split: str, seeds: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the scores of a split: a column for each seed, then mean and range."""
    lines = [
        f"| {split} | {' | '.join(f'seed {s}' for s in seeds)} | mean | lowest to highest |",
        "| --- " * (len(seeds) + 3) + "|",
    ]
    for name in ("mean_iou", "pixel_accuracy"):
        lines.append(_row(name.replace("_", " "), [seed[name] for seed in seeds.values()]))
    for name in next(iter(seeds.values()))["iou"]:
        values = [seed["iou"][name] for seed in seeds.values()]
        if None not in values:
            lines.append(_row(f"IoU {name}", values))
    secs = [seed["train_secs"] for seed in seeds.values()]
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
    early = flags.FlagValues()
    flags.DEFINE_string("recipe", "", "which recipe", flag_values=early)
    with contextlib.suppress(flags.Error):  # reported below, with all other flags
        early(argv, known_only=True)
    flag_file = [f"--flagfile={FOLDER / early.recipe}.flags"] if early.recipe in RECIPES else []
    return cli.run(work, define_flags(), [argv[0], *flag_file, *argv[1:]], __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
