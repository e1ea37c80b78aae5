"""Trains on CamVid at each precision and compares the loss curves with those of float32.

    python benchmarks/precision_curves.py --camvid_dir=CAMVID [--work_dir=W] [--plot=FILE.png]
        [--steps=300] [--encoder=...] [--crop=...] [--batch_size=...]

All runs start from the same random weights and use the same crops and dropout, except for those
with other seeds. A curve is the mean training loss of each window of 20 steps; a run's deviation is
the absolute difference between its curve and float32's. Two kinds of float32 runs measure the
noise: with other seeds (other weights and crops), and nudged, with the learning rate changed by one
part per million, about a rounding error. A precision is within the noise if the mean and the
maximum of its deviations are below those of every other seed; otherwise the exit code is 1. Steps
that float16 skips have no loss and are counted.

Run the same command again to resume. Options that are not set depend on the machine: with a GPU,
resnet50 at 257x257 and 16 crops per step; without one, a size that takes about 20 minutes on a CPU
core, which emulates half precision slowly.
"""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mapseg import cli
from mapseg.config import ENCODERS

CLASSES = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
    "unlabeled",
]
WINDOW_STEPS = 20
LEARNING_RATE = 0.01
REFERENCE, NUDGED = "float32", "float32, nudged"
HALF = ("mixed_bfloat16", "mixed_float16")
SIZES = {
    "GPU": {"encoder": "resnet50", "crop": 257, "batch_size": 16},
    "CPU": {"encoder": "mobilenet_v2", "crop": 65, "batch_size": 6},
}


@dataclass(frozen=True)
class Course:
    """A training run: [steps] loss, nan for skipped steps, and the number of skipped steps."""

    loss: np.ndarray
    skipped_steps: int

    @property
    def curve(self) -> np.ndarray:
        """Mean loss of each window, [steps / WINDOW_STEPS]."""
        return np.nanmean(self.loss.reshape(-1, WINDOW_STEPS), axis=1)


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "camvid_dir", "", "CamVid folder with train/images and train/labels", flag_values=values
    )
    flags.DEFINE_string(
        "work_dir", "runs/precision_curves", "folder for records and runs", flag_values=values
    )
    flags.DEFINE_string(
        "plot", "", "PNG file of the plot; default: in work_dir", flag_values=values
    )
    flags.DEFINE_integer(
        "steps", 300, f"steps of each run, a multiple of {WINDOW_STEPS}", flag_values=values
    )
    flags.DEFINE_string("encoder", "", "encoder: " + ", ".join(ENCODERS), flag_values=values)
    flags.DEFINE_integer("crop", 0, "side of a crop in pixels", flag_values=values)
    flags.DEFINE_integer("batch_size", 0, "crops per step", flag_values=values)
    flags.DEFINE_integer(
        "other_seeds", 2, "number of float32 runs with other seeds", flag_values=values
    )
    return values


def work(values: flags.FlagValues) -> int:
    """Trains the runs that are not finished, prints the table and draws the plot."""
    camvid_dir, work_dir = Path(cli.required(values, "camvid_dir")), Path(values.work_dir)
    if values.steps < WINDOW_STEPS or values.steps % WINDOW_STEPS:
        raise ValueError(f"steps must be a multiple of {WINDOW_STEPS}; got {values.steps}")
    if values.other_seeds < 1:
        raise ValueError(f"other_seeds must be at least 1; got {values.other_seeds}")
    convert(camvid_dir, work_dir)
    courses = {}
    options = shared_options(values)
    with cli.stop_on_signal() as stopping:
        for name, case_options in cases(values.other_seeds).items():
            courses[name] = train(work_dir, name, {**options, **case_options}, stopping)
            if stopping():
                return 130
    print(table(courses))
    plot_path = Path(values.plot or work_dir / "precision_curves.png")
    title = "{encoder}, {crop_height}x{crop_width}, {batch_size} crops a step".format(**options)
    write_plot(courses, title, plot_path)
    print(f"\n{plot_path}")
    follows = [within_noise(name, courses) for name in HALF]
    return 0 if all(follows) else 1


def cases(other_seeds: int) -> dict[str, dict[str, Any]]:
    """Returns the options in which each run differs, by its name."""
    return {
        REFERENCE: {},
        **{precision: {"precision": precision} for precision in HALF},
        NUDGED: {"learning_rate": LEARNING_RATE * (1 + 1e-6)},
        **{f"float32, seed {seed}": {"seed": seed} for seed in range(2, 2 + other_seeds)},
    }


def shared_options(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the options of every run; those that are not set depend on the machine."""
    import tensorflow as tf

    size = SIZES["GPU" if tf.config.list_physical_devices("GPU") else "CPU"]
    encoder, crop, batch_size = (values[name].value or size[name] for name in size)
    return {
        "encoder": encoder,
        "encoder_weights": "none",
        "crop_height": crop,
        "crop_width": crop,
        "batch_size": batch_size,
        "loss": "ce",
        "learning_rate": LEARNING_RATE,
        "precision": "float32",
        "seed": 1,
        "train_split": "train",
        "steps": values.steps,
        "log_steps": 1,
        "checkpoint_steps": 100,
        "keep_checkpoints": 1,
    }


def convert(camvid_dir: Path, work_dir: Path) -> None:
    """Converts the training split to records, unless that is done."""
    from data_prep.conversion import build_records
    from data_prep.convert import Resize
    from data_prep.sources import find_folders

    labels = [
        {"name": name, "color": [20 * i] * 3, "evaluate": name != "unlabeled"}
        for i, name in enumerate(CLASSES)
    ]
    work_dir.mkdir(parents=True, exist_ok=True)
    classes_path = work_dir / "classes.json"
    classes_path.write_text(json.dumps({"labels": labels}), encoding="utf-8")
    folder = camvid_dir / "train"
    source = find_folders(folder / "images", folder / "labels", classes_path, "train")
    build_records(source, work_dir / "records", Resize(), workers=1, progress=cli.report)


def train(work_dir: Path, name: str, options: Mapping[str, Any], stopping: Any) -> Course:
    """Trains a run or resumes it; returns its losses."""
    from mapseg.estimator import Estimator
    from mapseg.runs.history import read_history

    def report(line: str) -> None:
        step = line.removeprefix("step ").split("/")[0]
        if not step.isdigit() or int(step) % WINDOW_STEPS == 0:
            cli.report(f"{name}: {line}")

    run_dir = work_dir / name.replace(", ", "_").replace(" ", "_")
    estimator = Estimator(run_dir, report)
    estimator.train(work_dir / "records", evaluating=False, stopping=stopping, **options)
    rows = read_history(estimator.run.history_path)
    skipped = int(max(row["skipped_steps"] for row in rows))
    return Course(np.array([row.get("loss", np.nan) for row in rows]), skipped)


def deviation(name: str, courses: Mapping[str, Course]) -> np.ndarray:
    """Returns the difference between a run's curve and float32's, by window."""
    return courses[name].curve - courses[REFERENCE].curve


def seeds_of(courses: Mapping[str, Course]) -> list[str]:
    """Returns the names of the float32 runs with other seeds."""
    return [name for name in courses if "seed" in name]


def within_noise(name: str, courses: Mapping[str, Course]) -> bool:
    """Returns whether a run is closer to float32 than all other seeds are, in mean and maximum."""
    gap = np.abs(deviation(name, courses))
    noise = [np.abs(deviation(seed, courses)) for seed in seeds_of(courses)]
    return gap.mean() < min(n.mean() for n in noise) and gap.max() < min(n.max() for n in noise)


def table(courses: Mapping[str, Course]) -> str:
    """Formats the table."""
    lines = [
        "| run | loss, first window | loss, last window | deviation from float32, mean | largest "
        "| with its sign, mean | skipped steps | within noise |",
        "| --- " * 8 + "|",
    ]
    for name, course in courses.items():
        curve, gap = course.curve, deviation(name, courses)
        cells = f"{np.abs(gap).mean():.4f} | {np.abs(gap).max():.4f} | {gap.mean():+.4f} |"
        verdict = ("yes" if within_noise(name, courses) else "**no**") if name in HALF else ""
        lines.append(
            f"| {name} | {curve[0]:.4f} | {curve[-1]:.4f} "
            f"| {cells if name != REFERENCE else '| | |'} {course.skipped_steps} | {verdict} |"
        )
    return "\n".join(lines)


def write_plot(courses: Mapping[str, Course], title: str, path: Path) -> None:
    """Plots the curves and, below them, their deviations; other seeds are grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    from mapseg.files import write_bytes

    figure = Figure(figsize=(10, 8.4), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    canvas = FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    seeds, reference = seeds_of(courses), courses[REFERENCE]
    steps = np.arange(len(reference.loss)) + 1
    middles = steps.reshape(-1, WINDOW_STEPS).mean(axis=1)
    upper.plot(steps, reference.loss, color="C0", linewidth=0.8, alpha=0.2, label="float32, raw")
    for i, name in enumerate((*seeds, REFERENCE, *HALF, NUDGED)):
        look = {"color": f"C{i - len(seeds)}", "linewidth": 1.8, "marker": "."}
        if name in seeds:
            look = {"color": "0.6", "linewidth": 1.2, "linestyle": ["-", "--", ":", "-."][i % 4]}
        elif name == NUDGED:
            look |= {"linestyle": ":"}
        upper.plot(middles, courses[name].curve, **look, label=name)
        if name != REFERENCE:
            lower.plot(middles, deviation(name, courses), **look, label=name)
    lower.axhline(0, color="C0", linewidth=1)
    upper.set_title(f"{title}; means of {WINDOW_STEPS} steps", fontsize=10)
    for axis, text in ((upper, "training loss"), (lower, "difference from float32")):
        axis.set_ylabel(text)
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    upper.legend(frameon=False)
    lower.set_xlabel("step")
    canvas.draw()
    data, picture = io.BytesIO(), Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(128).save(data, "PNG")  # a third of the file size
    write_bytes(path, data.getvalue())


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
