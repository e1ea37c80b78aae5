"""Files of predictions and of labels -> an evaluation, whatever program wrote the predictions."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mapseg.data.label_files import MASK_IDS, IdFile, check_ids, palette_note, read_ids
from mapseg.data.pairing import LABEL_SUFFIXES, Pair, Suffixes, listing, match_files
from mapseg.data.resizing import resize_label
from mapseg.evaluation.counting import ImageCounts, count_image
from mapseg.evaluation.evaluation import Evaluation, evaluation_of
from mapseg.json_files import read_json
from mapseg.labels import VOID, LabelClass, LabelSet, parse_class_table
from mapseg.machine import cores
from mapseg.mapping import Mapping
from mapseg.progress import make_reporter

_MAX_THREADS = 4  # each holds an image and its counts
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class PredictedIds:
    """The meaning of the ids in files of predictions.

    Attributes:
      classes: the class of each id.
      table: [256] uint8 train id of the evaluation's label set, or VOID for no class, by id.
      are_train_ids: whether they are train ids, of which VOID is no class; else source ids.
    """

    classes: tuple[LabelClass, ...]
    table: np.ndarray
    are_train_ids: bool

    def check(self, file: IdFile) -> None:
        """Rejects ids without a meaning; ValueError, naming the file."""
        if not self.are_train_ids:
            without_meaning = {*file.used} - {c.id for c in self.classes}
            if without_meaning == {VOID} and {*file.used} != MASK_IDS:
                raise ValueError(
                    f"{file.path}: ids must be in the class table; got {VOID}, which is no class "
                    "in train ids. Remedy: if they are train ids, give --prediction_ids=train or, "
                    "with --mapping, the labels.json of their run as --prediction_classes"
                )
            check_ids(file, self.classes, "prediction")
            return
        unknown = sorted({*file.used} - {*range(len(self.classes)), VOID})
        if unknown:
            raise ValueError(
                f"{file.path}: ids must be train ids (0-{len(self.classes) - 1}, or {VOID} for no "
                f"class); got {', '.join(map(str, unknown))}. Remedy: give the --label_set or "
                "--prediction_classes that they were predicted in or, if they are ids of a class "
                "table, --prediction_ids=source"
            )


def source_ids(classes: tuple[LabelClass, ...], label_set: LabelSet) -> PredictedIds:
    """Describes predictions in the ids of the labels' class table."""
    return PredictedIds(classes, label_set.table, False)


def train_ids(label_set: LabelSet) -> PredictedIds:
    """Describes predictions in the train ids of the label set."""
    table = np.full(256, VOID, np.uint8)
    table[: len(label_set.classes)] = np.arange(len(label_set.classes))
    return PredictedIds(label_set.classes, table, True)


def mapped_ids(
    mapping: Mapping, classes: tuple[LabelClass, ...], are_train_ids: bool, label_set: LabelSet
) -> PredictedIds:
    """Describes predictions in other classes, which a mapping translates by name.

    Args:
      mapping: from the predicted classes to classes of the label set.
      classes: the predicted classes.
      are_train_ids: whether the predictions are train ids; else ids of a class table.
      label_set: of the evaluation.

    Raises:
      ValueError: a predicted class has no line in the mapping, or a target is not in the label set.
    """
    translation = mapping.translation([c.name for c in classes], label_set)
    table = np.full(256, VOID, np.uint8)
    table[[c.id for c in classes]] = translation[: len(classes)]
    return PredictedIds(classes, table, are_train_ids)


def read_predicted_classes(path: Path) -> tuple[tuple[LabelClass, ...], bool]:
    """Reads the classes of predictions from a class table, or from the `labels.json` of a run.

    Returns:
      The classes, and whether their ids are train ids.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is neither.
    """
    raw = read_json(path)
    if isinstance(raw, dict) and "source_to_train" in raw:
        return LabelSet.from_json(raw, str(path)).classes, True
    return parse_class_table(raw, str(path)), False


def find_predictions(
    predictions_dir: Path, labels_dir: Path, prediction_suffix: str = "", label_suffix: str = ""
) -> tuple[tuple[Pair, ...], int]:
    """Pairs predictions with labels by name; every label must have a prediction.

    Args:
      predictions_dir: PNGs of ids, also in sub-folders.
      labels_dir: PNGs of ids, under the same relative paths.
      prediction_suffix: how the names of predictions end; empty is any PNG.
      label_suffix: how the names of labels end.

    Returns:
      The pairs by ascending key, and the number of predictions without a label.

    Raises:
      FileNotFoundError: a folder does not exist.
      ValueError: a folder has no PNGs, both are the same and no suffix is given, or a label has no
        usable prediction.
    """
    suffixes = Suffixes(prediction_suffix, label_suffix, "prediction", LABEL_SUFFIXES)
    pairs, without_label, wrong = match_files(predictions_dir, labels_dir, suffixes)
    if wrong:
        keys = ", ".join([*wrong][:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
        raise ValueError(
            f"{next(iter(wrong.values()))} ({len(wrong)} of {len(wrong) + len(pairs)} have no "
            f"pair: {keys}). Remedy: predict all images; if names end differently, give "
            "--prediction_suffix and --label_suffix; in an output folder of infer_main.py, "
            "give its ids/"
        )
    if not pairs:
        ends = ", ".join(suffixes.ends[1])
        raise ValueError(f"{labels_dir}: must contain labels ({ends}); got {listing(labels_dir)}")
    return pairs, len(without_label)


class Scored(NamedTuple):
    """The result of `score_pairs`.

    Attributes:
      evaluation: of all pairs.
      resized: number of predictions that were resized.
      palette_notes: the files whose palette contradicts their classes, and how.
    """

    evaluation: Evaluation
    resized: int
    palette_notes: tuple[str, ...]


class Counted(NamedTuple):
    """The counts of one pair, whether its prediction was resized, and its palette notes."""

    counts: ImageCounts
    resized: bool
    notes: tuple[str, ...]


def score_pairs(
    pairs: Sequence[Pair],
    classes: tuple[LabelClass, ...],
    label_set: LabelSet,
    predicted: PredictedIds,
    progress: Callable[[str], None],
    *,
    resize: bool = False,
) -> Scored:
    """Scores predictions, several images at a time; keeps only their counts.

    Args:
      pairs: of predictions and labels.
      classes: the class table of the labels.
      label_set: the classes to score.
      predicted: the meaning of the predicted ids.
      progress: called with a line every few seconds.
      resize: whether a prediction of another size than its label is resized; else it is an error.

    Raises:
      ValueError: a file is unreadable, damaged or not a map of known ids, or a size differs.
    """
    report = make_reporter(0, len(pairs), "images", progress)
    counted: list[Counted] = []

    def count(pair: Pair) -> Counted:
        return count_pair(pair, classes, label_set, predicted, resize)

    with ThreadPoolExecutor(min(cores(), _MAX_THREADS)) as pool:
        try:
            for done, one in enumerate(pool.map(count, pairs), start=1):
                counted.append(one)
                report(done)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C
    return Scored(
        evaluation_of([one.counts for one in counted], label_set),
        sum(one.resized for one in counted),
        tuple(note for one in counted for note in one.notes),
    )


def count_pair(
    pair: Pair,
    classes: tuple[LabelClass, ...],
    label_set: LabelSet,
    predicted: PredictedIds,
    resize: bool,
) -> Counted:
    """Counts one pair; the arguments are those of `score_pairs`.

    Raises:
      ValueError: as in `score_pairs`.
    """
    label_file = read_ids(pair.label_path, "label", "fetch the file again")
    check_ids(label_file, classes, "label")
    file = read_ids(pair.image_path, "prediction", "write the prediction again")
    predicted.check(file)
    size = label_file.ids.shape
    differs = file.ids.shape != size
    if differs and not resize:
        (height, width), (rows, columns) = file.ids.shape, size
        raise ValueError(
            f"{file.path}: a prediction must have its label's size; got {height}x{width}, label "
            f"{rows}x{columns} in {label_file.path}. Remedy: predict at the image's own size, or "
            "give --resize, which takes the nearest pixel"
        )
    prediction = resize_label(file.ids, (size[0], size[1]))
    counts = count_image(
        pair.key,
        label_set.table[label_file.ids],
        predicted.table[prediction],
        label_set,
        details=True,
    )
    notes = (
        (label_file.path, palette_note(label_file, classes)),
        (file.path, palette_note(file, predicted.classes)),
    )
    return Counted(counts, differs, tuple(f"{path}: {note}" for path, note in notes if note))
