"""Scores anybody's predictions against labels, or compares two evaluations.

Predictions and labels are PNGs of ids, paired by name:
  python -m mapseg.evaluation.score --predictions=P --labels=L --classes=TABLE.json
Predictions in train ids, such as infer_main.py writes:
  ... --prediction_ids=train --label_set=all
Predictions in the classes of another dataset:
  ... --mapping=NAME|FILE.json --prediction_classes=TABLE.json|RUN/labels.json
Two evaluations of the same images, each a run folder or an evaluation file:
  python -m mapseg.evaluation.score --compare=A,B
docs/evaluate.md defines the scores.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mapseg import cli
from mapseg.evaluation.comparison import comparison_lines, read_compared
from mapseg.evaluation.predictions import (
    PredictedIds,
    find_predictions,
    mapped_ids,
    read_predicted_classes,
    score_pairs,
    source_ids,
    train_ids,
)
from mapseg.evaluation.stored import write_evaluation
from mapseg.evaluation.summary import summary_lines
from mapseg.files import check_writable
from mapseg.labels import LabelClass, LabelSet, make_label_set, read_class_table
from mapseg.mapping import read_mapping
from mapseg.progress import show

_SCORING = (
    *("predictions", "labels", "classes", "label_set", "prediction_ids", "mapping"),
    *("prediction_classes", "prediction_suffix", "label_suffix", "resize", "out_path"),
)


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()

    def text(name: str, default: str, help_text: str) -> None:
        flags.DEFINE_string(name, default, help_text, flag_values=values)

    text("predictions", "", "folder of predictions: PNGs of ids")
    text("labels", "", "folder of labels: PNGs of source ids under the same names")
    text("classes", "", "the class table of the labels, in the schema of Vistas' config files")
    text("label_set", "all", "the classes to score: all, all_66, lane_marking or a .json file")
    flags.DEFINE_enum(
        "prediction_ids",
        "source",
        ["source", "train"],
        "ids in predictions: those of the class table, or those of the label set",
        flag_values=values,
    )
    text("mapping", "", "translates predictions in other classes: a mapping's name or .json file")
    text(
        "prediction_classes",
        "",
        "with --mapping: the class table of the predictions, or the labels.json of the run that "
        "made them; default: --classes",
    )
    text("prediction_suffix", "", "how the names of predictions end, such as _pred.png")
    text("label_suffix", "", "how the names of labels end, such as _gtFine_labelIds.png")
    flags.DEFINE_bool(
        "resize", False, "resize predictions to the size of their labels", flag_values=values
    )
    text("out_path", "", "write the evaluation to this .json file, and tables next to it")
    flags.DEFINE_list(
        "compare", [], "two run folders or evaluation files: baseline,other", flag_values=values
    )
    text("split", "validation", "with --compare: the split that run folders were evaluated on")
    return values


def work(values: flags.FlagValues) -> int:
    """Scores or compares."""
    scoring = [name for name in _SCORING if values[name].present]
    if values["compare"].present and scoring:
        raise ValueError(
            f"compare must be given alone; got also --{scoring[0]}. Remedy: score first, then "
            "compare the files of --out_path"
        )
    runs = [path for path in values.compare if Path(path).is_dir()]
    if values["split"].present and not runs:
        raise ValueError(
            "split must be given only with --compare and a run folder; got no run folder. Remedy: "
            "leave it out"
        )
    return _compare(values) if values["compare"].present else _score(values)


def _compare(values: flags.FlagValues) -> int:
    if len(values.compare) != 2:
        raise ValueError(
            "compare must be two run folders or evaluation files, separated by a comma; got "
            f"{len(values.compare)}"
        )
    first, second = (read_compared(Path(path), values.split) for path in values.compare)
    lines = list(comparison_lines(first, second))
    for path, evaluation in zip(values.compare, (first, second), strict=True):
        cli.report(f"{path}: mean IoU {evaluation.mean_iou:.2%}")
    cli.report("\n".join(lines))
    return 0


def _score(values: flags.FlagValues) -> int:
    predictions_dir, labels_dir, classes_path = (
        Path(cli.required(values, name)) for name in ("predictions", "labels", "classes")
    )
    out_path = _out_path(values)
    classes = read_class_table(classes_path)
    label_set = make_label_set(classes, values.label_set)
    predicted = _predicted_ids(values, classes, label_set)
    pairs, unlabelled = find_predictions(
        predictions_dir, labels_dir, values.prediction_suffix, values.label_suffix
    )
    if unlabelled:
        cli.report(f"{unlabelled} predictions without a label are ignored")
    evaluation, resized, palette_notes = score_pairs(
        pairs, classes, label_set, predicted, show, resize=values.resize
    )
    if not evaluation.present.any():
        raise ValueError(
            f"{labels_dir}: labels must have pixels of the classes that are scored "
            f"({label_set.name}); got none. Remedy: give another --label_set or --classes"
        )
    if resized:
        cli.report(f"{resized} of {len(pairs)} predictions were resized to their labels")
    cli.report("\n".join(summary_lines(evaluation)))
    if palette_notes:  # last, to be seen
        options = "--prediction_classes" if values.mapping else "--prediction_ids"
        cli.report(
            f"WARNING: {palette_notes[0]}"
            + (f" ({len(palette_notes)} such files)" if len(palette_notes) > 1 else "")
            + f". If its ids are not those of the table: give another --classes or {options}"
        )
    if out_path is not None:
        facts: dict[str, Any] = {
            "predictions_dir": predictions_dir.resolve().name,
            "labels_dir": labels_dir.resolve().name,
            "class_table": classes_path.name,
            "prediction_ids": "train" if predicted.are_train_ids else "source",
            "mapping": read_mapping(values.mapping).digest if values.mapping else "",
            "prediction_classes": Path(values.prediction_classes).name,
            "samples": len(pairs),
            "resized": resized,
        }
        write_evaluation(out_path, evaluation, facts)
        cli.report(f"wrote {out_path}")
    return 0


def _out_path(values: flags.FlagValues) -> Path | None:
    """Returns where to write the evaluation; checked before any image is scored."""
    if not values.out_path:
        return None
    path = Path(values.out_path)
    options = (values.classes, values.label_set, values.mapping, values.prediction_classes)
    inputs = [Path(option).resolve() for option in options if option]
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"out_path must be a .json file; got {path}. Remedy: --out_path=NAME.json")
    if any(
        file and Path(file).is_file() and path.exists() and path.samefile(file) for file in inputs
    ):
        raise ValueError(f"out_path must not be an input; got {path}. Remedy: another name")
    check_writable(path.parent)
    return path


def _predicted_ids(
    values: flags.FlagValues, classes: tuple[LabelClass, ...], label_set: LabelSet
) -> PredictedIds:
    if not values.mapping:
        if values.prediction_classes:
            raise ValueError(
                "prediction_classes must be given together with --mapping, which translates them"
            )
        is_source = values.prediction_ids == "source"
        return source_ids(classes, label_set) if is_source else train_ids(label_set)
    if values["prediction_ids"].present:
        raise ValueError(
            "prediction_ids must not be given together with --mapping: the ids are those of "
            "--prediction_classes"
        )
    predicted, are_train_ids = classes, False
    if values.prediction_classes:
        predicted, are_train_ids = read_predicted_classes(Path(values.prediction_classes))
    return mapped_ids(read_mapping(values.mapping), predicted, are_train_ids, label_set)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
