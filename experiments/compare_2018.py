"""Compares runs with the predictions of 2018 on the same images: scores and pictures.

    python experiments/compare_2018.py --flagfile=experiments/vistas_sample.flags
        --vistas_dir=VISTAS --predictions_dir=SEED --run_dirs=W/seed1,W/seed2,W/seed3 --out_dir=P
        [--frames=KITTI] [any option of prediction]

SEED contains raw_66/, downsized_66/, raw_lane/ and downsized_lane/, each with the source ids (for
lanes: 0 and 1) that a model of 2018 predicted for the validation images, as KEY.png. All runs must
have the same label set, `all` or `lane_marking`; they are compared with the 2018 predictions for
it. A prediction of "unlabeled" counts as wrong. P/panels shows each image, the predictions of 2018
and of the first run, and the ground truth; with --frames, P/frames has the overlays of
`infer_main.py`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from absl import flags

from mapseg import cli
from mapseg import pictures as plots
from mapseg.config import InferConfig, ModelConfig, PredictConfig, TrainConfig
from mapseg.data.label_files import read_ids
from mapseg.evaluation.scores import Scores, confusion_matrix
from mapseg.files import check_writable
from mapseg.labels import LANE_MARKING, LabelSet, make_label_set

if TYPE_CHECKING:
    from mapseg.data.pairing import Pair

FORMER = {"all": ("raw_66", "downsized_66"), "lane_marking": ("raw_lane", "downsized_lane")}
LANES = {"all": "marking--general", "lane_marking": LANE_MARKING}
_TITLE_PX = 24


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    for name, help_text in (
        ("vistas_dir", "a Vistas v1.2 folder"),
        ("predictions_dir", "folder of the predictions of 2018"),
        ("out_dir", "folder for the pictures"),
        ("frames", "frames to segment and draw overlays of"),
    ):
        flags.DEFINE_string(name, "", help_text, flag_values=values)
    flags.DEFINE_list("run_dirs", [], "runs that differ only in the seed", flag_values=values)
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints the table and draws the pictures."""
    names = ("vistas_dir", "predictions_dir", "out_dir")
    vistas_dir, former_dir, out_dir = (Path(cli.required(values, name)) for name in names)
    if not values.run_dirs:
        raise ValueError("run_dirs must be a comma-separated list of run folders; got none")
    predicting = PredictConfig(**cli.explicit_options(values, PredictConfig))

    from data_prep.sources import find_vistas
    from mapseg.estimator import Estimator
    from mapseg.inference.frames import find_frames
    from mapseg.inference.infer import infer_run
    from mapseg.inference.reading import read_image
    from mapseg.runs.folder import open_run

    run_dirs = [Path(run_dir) for run_dir in values.run_dirs]
    label_sets = {open_run(run_dir).label_set for run_dir in run_dirs}
    if len(label_sets) > 1 or next(iter(label_sets)).name not in FORMER:
        raise ValueError("run_dirs must have the same label set, all or lane_marking")
    label_set = label_sets.pop()
    source = find_vistas(vistas_dir)
    if label_set != make_label_set(source.classes, label_set.name):
        raise ValueError(
            f"{run_dirs[0]}: run_dirs must be of the classes of {vistas_dir}; they differ. Remedy: "
            "choose runs trained on Vistas v1.2"
        )
    splits = [s for s in source.splits if s.name == "validation"]
    if not splits:
        raise ValueError(f"{vistas_dir}: vistas_dir must have a validation split with labels")
    (split,) = splits
    check_writable(out_dir)
    config = None
    if values.frames:
        frames_dir = str(out_dir / "frames")
        config = InferConfig(values.frames, frames_dir, outputs="ids,overlay,panel")
        find_frames(config)  # fails before the predictions
    # The models of 2018 may also predict "unlabeled", which is not a class of the runs.
    scored = (
        label_set if label_set.name == "lane_marking" else make_label_set(source.classes, "all_66")
    )
    labels = [cv2.LUT(read_map(pair.label_path, "label"), scored.table) for pair in split.pairs]
    ids = 2 if label_set.name == "lane_marking" else len(source.classes)
    guesses: dict[str, list[np.ndarray]] = {
        name: [
            read_guess(former_dir / name / f"{pair.key}.png", label.shape, ids)
            for pair, label in zip(split.pairs, labels, strict=True)
        ]
        for name in FORMER[label_set.name]
    }
    images = [read_image(pair.image_path) for pair in split.pairs]
    for run_dir in run_dirs:
        estimator = Estimator(run_dir, cli.report)
        guesses[str(run_dir)] = [
            estimator.predict(image, predicting, "latest").ids for image in images
        ]
    print(table(guesses, labels, scored, LANES[label_set.name], split.pairs))
    for i, pair in enumerate(split.pairs):
        drawn = {
            "image": images[i],
            **{f"2018, {n}": scored.palette[guesses[n][i]] for n in FORMER[label_set.name]},
            "mapseg": scored.palette[guesses[str(run_dirs[0])][i]],
            "ground truth": scored.palette[labels[i]],
        }
        plots.write_jpg(out_dir / "panels" / f"{pair.key}.jpg", side_by_side(drawn))
    if config:
        infer_run(run_dirs[0], config, predicting, "latest", cli.report)
    cli.report(f"wrote {out_dir}")
    return 0


def read_map(path: Path, noun: str) -> np.ndarray:
    """Reads a PNG of ids, [H, W] uint8; `noun` is what messages call it."""
    return np.asarray(read_ids(path, noun, "copy it again").image)


def read_guess(path: Path, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Reads a prediction of 2018, [H, W] uint8.

    Raises:
      ValueError: it has another shape, or ids from `count` on.
    """
    ids = read_map(path, "prediction")
    if ids.shape != shape:
        sides = " x ".join(map(str, shape))
        raise ValueError(
            f"{path}: must have the size of the label, {sides} (height x width); got "
            f"{ids.shape[0]} x {ids.shape[1]}. Remedy: copy it again, or choose other labels"
        )
    if ids.max() >= count:
        raise ValueError(
            f"{path}: ids must be below {count}; got {ids.max()}. Remedy: copy it again"
        )
    return ids


def table(
    guesses: Mapping[str, Sequence[np.ndarray]],
    labels: Sequence[np.ndarray],
    label_set: LabelSet,
    lane: str,
    pairs: Sequence["Pair"],
) -> str:
    """Formats the scores over all images, and the mean IoU of each image."""
    classes = len(label_set.classes)
    head = ["prediction", "mean IoU", "pixel accuracy", "lane marking IoU"]
    lines = [
        f"| {' | '.join([*head, *(pair.key for pair in pairs)])} |",
        "| --- " * (len(head) + len(pairs)) + "|",
    ]
    for name, predictions in guesses.items():
        matrices = [
            confusion_matrix(label, guess, classes)
            for label, guess in zip(labels, predictions, strict=True)
        ]
        scores = Scores(sum(matrices[1:], matrices[0]), label_set)
        figures = [
            scores.mean_iou,
            scores.pixel_accuracy,
            scores.iou[label_set.names.index(lane)],
            *(Scores(matrix, label_set).mean_iou for matrix in matrices),
        ]
        lines.append(f"| {name} | {' | '.join(f'{v:.2%}' for v in figures)} |")
    return "\n".join(lines)


def side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Joins pictures of the same size horizontally, each with its name above."""
    columns = []
    for name, picture in pictures.items():
        title = np.full((_TITLE_PX, picture.shape[1], 3), 255, np.uint8)
        place = (6, _TITLE_PX - 7)
        cv2.putText(title, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.vstack([title, picture]))
    return np.hstack(columns)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
