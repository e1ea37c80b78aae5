"""Compares the formats of an export with inference: ids, size, time to load, frames per second.

    python benchmarks/exports.py --run_dir=RUN --export_dir=RUN/export --frames=DIR [--check]
        [--count=6] [--rounds=5] [--cores=2]

The frames are in memory, and are segmented one by one. Each program runs in a process of its own;
they alternate, `--rounds` times. Inference uses no tiles here: export with a --tile_px that holds
the frames. The last column is the ratio of a format's median time per frame to inference's. --check
exits with 1 if the ids of a format are not those of inference.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from absl import flags
from programs import describe_machine, run_benchmark, run_child, take_turns

from mapseg import cli
from mapseg.config import InferConfig, PredictConfig
from mapseg.inference.export.formats import FORMATS, ONNX, SAVED_MODEL, Format
from mapseg.stored_json import read_stored_json

INFERENCE = "mapseg"
# Exports have no tiles; inference must not have any either.
TILE_PX = 4097

Segment = Callable[[np.ndarray], np.ndarray]


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("run_dir", "", "the run that was exported", flag_values=values)
    flags.DEFINE_string("export_dir", "", "the export", flag_values=values)
    flags.DEFINE_string("frames", "", "folder or glob of images", flag_values=values)
    flags.DEFINE_integer("count", 6, "number of frames", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "number of times each program runs", flag_values=values)
    flags.DEFINE_integer("cores", 2, "processor cores to use", flag_values=values)
    flags.DEFINE_bool("check", False, "exit with code 1 if ids differ", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a row for each format; with --check, returns 1 if ids differ."""
    names = ("run_dir", "export_dir", "frames")
    case = {name: cli.required(values, name) for name in names}
    case |= {"count": values.count, "cores": values.cores}
    facts = read_facts(Path(values.export_dir))
    formats = [form for form in FORMATS if form.name in facts["formats"]]
    print(f"{describe_machine()}; {values.cores} used", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        programs = {}
        for name in (INFERENCE, *(form.name for form in formats)):
            arguments = {**case, "program": name, "ids_path": f"{folder}/{name}.npz"}
            programs[name] = partial(run_child, __file__, arguments)
        turns = take_turns(programs, values.rounds)
        ids = {name: list(np.load(f"{folder}/{name}.npz").values()) for name in programs}
    print("| format | equal ids | MB | load | frames/s | time ratio |\n" + "| --- " * 6 + "|")
    times = {name: median(turn["frame_secs"] for turn in turns[name]) for name in turns}
    loads = {name: median(turn["load_secs"] for turn in turns[name]) for name in turns}
    print(f"| {INFERENCE} | | | {loads[INFERENCE]:.1f} s | {1 / times[INFERENCE]:.2f} | 1 |")
    missed = []
    for form in formats:
        equal = equal_share(ids[form.name], ids[INFERENCE])
        line = f"| {form.name} | {equal:.3%} | {megabytes(form, Path(values.export_dir)):.1f} "
        line += f"| {loads[form.name]:.1f} s | {1 / times[form.name]:.2f} "
        print(line + f"| {times[form.name] / times[INFERENCE]:.2f} |", flush=True)
        if equal < form.least_equal:
            missed.append(f"{form.name}: {equal:.3%} of the ids equal, at least {form.least_equal}")
    classes = len(np.unique(np.concatenate([x.ravel() for x in ids[INFERENCE]])))
    if classes < 2:
        missed.append("the frames show only one class")
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed and values.check else 0


def read_facts(export_dir: Path) -> Any:
    """Reads the description of an export."""
    return read_stored_json(export_dir / "export.json", "name a folder that --mode=export wrote")


def equal_share(ids: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Returns the share of equal pixels over all frames."""
    equal = sum(int((a == b).sum()) for a, b in zip(ids, others, strict=True))
    return equal / sum(a.size for a in ids)


def megabytes(form: Format, export_dir: Path) -> float:
    """Returns the size of a format's files."""
    paths = [export_dir / name for name in form.files]
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Loads one program and segments the frames; stores their ids."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["cores"]])
    from mapseg.inference.frames import find_frames
    from mapseg.inference.reading import read_image

    config = InferConfig(frames=case["frames"], out_dir=case["ids_path"])
    paths = [frame.path for frame in find_frames(config).frames[: case["count"]]]
    images = [read_image(path) for path in paths]
    begun = time.perf_counter()
    segment = open_program(case)
    load_secs = time.perf_counter() - begun
    np.savez(case["ids_path"], *map(segment, images))  # not timed: warms up
    times = []
    for image in images:
        begun = time.perf_counter()
        segment(image)
        times.append(time.perf_counter() - begun)
    return {"load_secs": load_secs, "frame_secs": median(times)}


def open_program(case: dict[str, Any]) -> Segment:
    """Loads inference, or a format as a program without mapseg does: [H, W, 3] -> [H, W] ids."""
    export_dir = Path(case["export_dir"])
    if case["program"] == INFERENCE:
        return open_inference(Path(case["run_dir"]), export_dir)
    if case["program"] == SAVED_MODEL.name:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(export_dir))
        return lambda image: loaded.segment(image[np.newaxis])["ids"][0].numpy()
    (form,) = (form for form in FORMATS if form.name == case["program"])
    path = str(export_dir / form.files[0])
    if form == ONNX:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case["cores"]
        session = onnxruntime.InferenceSession(path, options)
        return lambda image: session.run(["ids"], {"images": image[np.newaxis]})[0][0]
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path, num_threads=case["cores"]).get_signature_runner()
    return lambda image: run(images=image[np.newaxis])["ids"][0]


def open_inference(run_dir: Path, export_dir: Path) -> Segment:
    """Loads a predictor with the export's checkpoint and options, without tiles."""
    from mapseg.inference.predictor import load_predictor
    from mapseg.runs.checkpoints import find_checkpoint
    from mapseg.runs.folder import open_run

    facts = read_facts(export_dir)
    config = PredictConfig(**{**facts["options"], "tile_px": TILE_PX})
    path = find_checkpoint(run_dir, str(facts["step"]))
    predictor = load_predictor(open_run(run_dir), config, path)
    return lambda image: predictor.segment(image).ids


def main() -> int:
    """Runs the benchmark, or one measurement of it."""
    return run_benchmark(work, define_flags(), sys.argv, __doc__, measure)


if __name__ == "__main__":
    sys.exit(main())
