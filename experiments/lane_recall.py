"""Measures how much of the lane markings in five KITTI frames a run recognizes.

    python experiments/lane_recall.py --run_dir=R --frames_dir=KITTI5 --out_dir=P
        [any option of prediction]

`kitti_lanes.json` has polylines [(x, y)] in pixels along the middle of the markings. They were
drawn by hand, before any run was scored with them, and their vertices moved by up to 3 px across
the line to where it is brightest. Distant markings and those that blend into the road are
left out, so the figure is a recall only. The share of the frame that is predicted as lane marking
shows whether it was bought with false alarms.

P has a picture of each frame: the prediction in white, found pixels of the polylines in green,
missed ones in red.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags

from mapseg import cli
from mapseg.config import PredictConfig
from mapseg.files import check_writable
from mapseg.labels import LabelSet, is_lane_marking
from mapseg.pictures import write_jpg

LINES_PATH = Path(__file__).with_name("kitti_lanes.json")
FRAME_SIZE = 375, 1242  # of all frames that polylines are drawn for
TOLERANCE_PX = 2  # for thin lines, which are drawn to the pixel only


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    for name, help_text in (
        ("run_dir", "folder of the run"),
        ("frames_dir", "folder of the frames in kitti_lanes.json"),
        ("out_dir", "folder for the pictures"),
    ):
        flags.DEFINE_string(name, "", help_text, flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step", flag_values=values)
    cli.define_flags(values, PredictConfig)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints the table and draws the pictures."""
    names = ("run_dir", "frames_dir", "out_dir")
    run_dir, frames_dir, out_dir = (Path(cli.required(values, name)) for name in names)
    predicting = PredictConfig(**cli.explicit_options(values, PredictConfig))
    lines = json.loads(LINES_PATH.read_text(encoding="utf-8"))
    missing = [name for name in lines if not (frames_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{frames_dir}: frames_dir must contain {', '.join(lines)}; {', '.join(missing)} "
            "missing. Remedy: copy them from KITTI's training/image_2, 000... from the stereo "
            "benchmark of 2015, um_... from the road benchmark"
        )
    frames = {name: read_frame(frames_dir / name) for name in lines}
    check_writable(out_dir)

    from mapseg.estimator import Estimator
    from mapseg.runs.checkpoints import find_checkpoint

    estimator = Estimator(run_dir, cli.report)
    lanes = lane_ids(estimator.run.label_set)
    find_checkpoint(run_dir, values.checkpoint)  # fails before the table
    print("| frame | recall | within 2 px | predicted as lane marking |\n| --- | --- | --- | --- |")
    counts = []
    for name, polylines in lines.items():
        frame = frames[name]
        drawn = draw(polylines, frame.shape[:2])
        ids = estimator.predict(frame, predicting, values.checkpoint).ids
        predicted = np.isin(ids, lanes)
        counts.append(count(drawn, predicted))
        print(row(name, counts[-1]))
        write_jpg(out_dir / f"{Path(name).stem}.jpg", picture(frame, drawn, predicted))
    print(row("all", np.sum(counts, axis=0)))
    cli.report(f"wrote {out_dir}")
    return 0


def read_frame(path: Path) -> np.ndarray:
    """Reads a frame for which polylines are drawn; returns [375, 1242, 3] uint8 RGB.

    Raises:
      ValueError: it cannot be decoded, or has another size.
    """
    from mapseg.inference.reading import read_image

    frame = read_image(path)
    if frame.shape[:2] != FRAME_SIZE:
        raise ValueError(
            f"{path}: must have {FRAME_SIZE[0]} x {FRAME_SIZE[1]} pixels (height x width), as "
            f"lane markings are drawn for this size; got {frame.shape[0]} x {frame.shape[1]}. "
            "Remedy: copy the frame from KITTI again"
        )
    return frame


def lane_ids(label_set: LabelSet) -> list[int]:
    """Returns the train ids of lane markings.

    Raises:
      ValueError: there are none.
    """
    ids = [i for i, name in enumerate(label_set.names) if is_lane_marking(name)]
    if not ids:
        raise ValueError(
            f"the run's classes must include lane markings; got {', '.join(label_set.names)}. "
            "Remedy: choose a run trained on Vistas"
        )
    return ids


def draw(polylines: Sequence[Sequence[Sequence[int]]], size: tuple[int, int]) -> np.ndarray:
    """Draws polylines of (x, y), one pixel wide; returns [H, W] bool."""
    drawn = np.zeros(size, np.uint8)
    for line in polylines:
        cv2.polylines(drawn, [np.array(line, np.int32)], isClosed=False, color=1)
    return drawn > 0


def count(drawn: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts [5]: drawn pixels, found, found within the tolerance, predicted pixels, all pixels."""
    kernel = np.ones(2 * (2 * TOLERANCE_PX + 1,), np.uint8)
    near = cv2.dilate(predicted.astype(np.uint8), kernel) > 0
    masks = (drawn, drawn & predicted, drawn & near, predicted)
    return np.array([*(int(mask.sum()) for mask in masks), drawn.size])


def row(name: str, counts: np.ndarray) -> str:
    """Formats the shares of `count`."""
    drawn, found, near, predicted, pixels = counts
    shares = (found / drawn, near / drawn, predicted / pixels)
    return f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |"


def picture(frame: np.ndarray, drawn: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns [H, W, 3] uint8: the frame darkened, with the prediction and the polylines."""
    shown = frame // 2
    shown[predicted] = 255
    shown[drawn & predicted] = (0, 170, 0)
    shown[drawn & ~predicted] = (255, 0, 0)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
