"""Times inference: the network alone, the whole pipeline, and other programs for comparison.

    python benchmarks/infer.py [--run_dirs=RUN] [--encoders=mobilenet_v2,resnet50] [--size=375x1242]
        [--batches=1] [--rounds=3] [--twin="python torch_cpu.py ARCH SIZE BATCH MODE CALLS"]
        [--twin_modes=onnx,infer] [--check] [--frames=DIR]

The network is from a run or has random weights. Random weights predict noise, the worst case for a
CPU, which interpolates logits only where neighbours disagree on the class. Measured is uint8 frames
in memory -> ids in memory, one by one or in batches. Each measurement runs in a separate process;
the programs alternate, `--rounds` times. --twin is the command of another program, in which the
words ARCH, SIZE, BATCH, MODE and CALLS are replaced; the environment variable CHANNELS holds the
decoder channels. It prints a JSON line with images_per_s.

--frames segments a folder of images into id PNGs and overlays as infer_main.py does, and compares
the time per frame, from the eleventh on, with the network's alone. --check exits with 1 if a target
in TARGETS is missed.
"""

import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from absl import flags
from programs import (
    describe_machine,
    rival_command,
    run_benchmark,
    run_child,
    run_json,
    take_turns,
)

from mapseg import cli, machine
from mapseg.config import ENCODERS, InferConfig, PredictConfig

CLASSES = 66
MEASURED = ("size", "image", "calls", "tile_px", "decoder_channels", "output_stride")
# (trained run, mode of the twin) -> maximum ratio of our time to the twin's.
TARGETS = {(True, "onnx"): 1.0, (True, "infer"): 0.55, (False, "onnx"): 1.0, (False, "infer"): 0.7}
GPU_TARGET = 0.67
END_TO_END_TARGET = 1.25
FIRST_FRAMES = 10  # not timed: they fill the queues and warm up


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    names = ", ".join(ENCODERS)
    flags.DEFINE_list("run_dirs", [], "trained runs to time", flag_values=values)
    flags.DEFINE_list(
        "encoders", [], f"encoders to time with random weights: {names}", flag_values=values
    )
    flags.DEFINE_integer(
        "decoder_channels",
        256,
        "decoder channels of the networks with random weights",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "output_stride", 16, "their output stride; ddrnet23_slim has 8", flag_values=values
    )
    flags.DEFINE_string(
        "size", "375x1242", "size of a frame in pixels, HEIGHTxWIDTH", flag_values=values
    )
    flags.DEFINE_integer(
        "tile_px", 4097, "largest side of a tile in pixels, as in infer_main.py", flag_values=values
    )
    flags.DEFINE_string("image", "", "image to segment instead of noise", flag_values=values)
    flags.DEFINE_list("batches", ["1"], "batch sizes", flag_values=values)
    flags.DEFINE_integer("calls", 15, "timed calls per process", flag_values=values)
    flags.DEFINE_integer("rounds", 3, "number of times each program runs", flag_values=values)
    flags.DEFINE_string(
        "twin", "", "command of another program to compare with", flag_values=values
    )
    flags.DEFINE_list(
        "twin_modes", ["onnx", "infer"], "values of MODE in --twin", flag_values=values
    )
    flags.DEFINE_string(
        "frames", "", "folder of frames to time the whole pipeline on", flag_values=values
    )
    flags.DEFINE_bool("check", False, "exit with code 1 if a target is missed", flag_values=values)
    flags.DEFINE_string("json", "", "file to write all figures to", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a line for each measurement; with --check, returns 1 if a target was missed."""
    print(describe_machine(), flush=True)
    cli.size(values, "size")  # before any measurement
    missed, records = [], []
    sources = [(True, run) for run in values.run_dirs] + [(False, e) for e in values.encoders]
    for is_run, source in sources:
        for batch in map(int, values.batches):
            case = {"source": source, "is_run": is_run, "batch": batch}
            case |= {name: values[name].value for name in MEASURED}
            records.append(compare(case, values))
            missed += records[-1]["missed"]
        if values.frames and is_run:
            records.append(end_to_end(source, values))
            missed += records[-1]["missed"]
        if values.json:  # after each source, in case a later one is killed
            text = json.dumps(records, indent=1) + "\n"
            Path(values.json).write_text(text, encoding="utf-8")
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed and values.check else 0


def compare(case: dict[str, Any], values: flags.FlagValues) -> dict[str, Any]:
    """Times a case alternately with its twins, and prints medians, ranges and ratios."""
    ours = partial(run_child, __file__, case)
    facts = ours()  # not timed: describes the network and warms the disk cache
    programs = {"mapseg": ours}
    words = {"ARCH": facts["encoder"], "SIZE": case["size"]}
    words |= {"BATCH": case["batch"], "CALLS": case["calls"]}
    for mode in values.twin_modes if values.twin else ():
        programs[mode] = partial(run_json, rival_command(values.twin, MODE=mode, **words))
    os.environ["CHANNELS"] = str(facts["decoder_channels"])
    turns = take_turns(programs, values.rounds)
    title = f"{facts['encoder']}, decoder of {facts['decoder_channels']}"
    title += f", {case['size']}, batch {case['batch']}"
    title += ", trained" if case["is_run"] else ", random weights"
    times = {
        name: [1000 * case["batch"] / result["images_per_s"] for result in results]
        for name, results in turns.items()
    }
    medians = {name: median(ms) for name, ms in times.items()}
    missed = []
    for name, results in turns.items():
        line = f"{title}: {name} {medians[name]:.1f} ms"
        line += f" ({min(times[name]):.1f} to {max(times[name]):.1f})"
        line += f", {results[0].get('peak_rss_mb', '?')} MB"
        if name == "mapseg":
            last = results[-1]
            line += f", slowest {last['slowest_ms']:.0f} ms"
            line += f", first frame after {last['first_secs']:.1f} s"
        else:
            ratio = medians["mapseg"] / medians[name]
            most = TARGETS[case["is_run"], name] if not facts["gpu"] else GPU_TARGET
            line += f"; ratio {ratio:.2f}, at most {most}"
            if ratio > most:
                missed.append(f"{title}: {ratio:.2f} of {name}, at most {most}")
        print(line, flush=True)
    return {**case, "turns": turns, "medians": medians, "missed": missed}


def end_to_end(run_dir: str, values: flags.FlagValues) -> dict[str, Any]:
    """Times the whole pipeline on a folder and compares it with the network alone."""
    case = {"source": run_dir, "frames": values.frames, "tile_px": values.tile_px}
    results = [run_child(__file__, case) for _ in range(3)]
    ratio = median(x["frame_ms"] / x["network_ms"] for x in results)
    frame_ms, network_ms = (median(x[k] for x in results) for k in ("frame_ms", "network_ms"))
    line = f"{values.frames}: {frame_ms:.0f} ms a frame from file to files, "
    line += f"network {network_ms:.0f} ms; ratio {ratio:.2f}, at most {END_TO_END_TARGET}"
    print(line, flush=True)
    missed = [line] if ratio > END_TO_END_TARGET else []
    return {**case, "turns": results, "missed": missed}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Runs one measurement, in a separate process; returns its figures."""
    started = time.perf_counter()
    import numpy as np

    predictor, encoder, channels = load(case)
    if "frames" in case:
        return measure_frames(case, predictor)
    height, width = map(int, case["size"].split("x"))
    frames = np.random.default_rng(0).integers(0, 256, [case["batch"], height, width, 3], np.uint8)
    if case["image"]:
        from mapseg.inference.reading import read_image

        frames[:] = read_image(Path(case["image"]))[:height, :width]
    times = []
    for _ in range(case["calls"] + 2):
        begun = time.perf_counter()
        for segmentation in predictor.segment_batch(frames):
            _ = segmentation.ids
        times.append(1000 * (time.perf_counter() - begun))
        if len(times) == 1:
            first = time.perf_counter() - started
    timed = sorted(times[2:])
    return {
        "encoder": encoder,
        "decoder_channels": channels,
        "gpu": bool(machine.gpus()),
        "images_per_s": 1000 * case["batch"] / median(timed),
        "slowest_ms": timed[-1],
        "first_secs": first,
        "peak_rss_mb": machine.used_bytes("peak") >> 20,
    }


def load(case: dict[str, Any]) -> tuple[Any, str, int]:
    """Loads a predictor at scale 1; also returns its encoder and decoder channels."""
    from mapseg.inference.predictor import Predictor, load_predictor

    config = PredictConfig(scale="1", tile_px=case["tile_px"])
    if case.get("is_run", True):
        from mapseg.runs.checkpoints import find_checkpoint
        from mapseg.runs.folder import open_run

        run = open_run(Path(case["source"]))
        predictor = load_predictor(run, config, find_checkpoint(run.run_dir))
        return predictor, run.model.encoder, run.model.decoder_channels
    from mapseg.config import ModelConfig
    from mapseg.inference.predictor import device_precision
    from mapseg.model.deeplab import build_model
    from mapseg.model.network import frozen_network
    from mapseg.training.prepare import resolve_precision

    channels = case["decoder_channels"]
    model = ModelConfig(
        encoder=case["source"],
        encoder_weights="none",
        decoder_channels=channels,
        output_stride=case["output_stride"],
    )
    network = build_model(model, CLASSES, precision=device_precision(resolve_precision("auto")))
    draw_statistics(network)
    return Predictor(frozen_network(network), config, 1), case["source"], channels


def draw_statistics(model: Any) -> None:
    """Randomises batch norms as after training: TensorFlow would optimise zero offsets away."""
    import keras
    import numpy as np

    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            draw_statistics(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            ones = layer.get_weights()[0]
            draws = [rng.uniform(0.5, 1.5, ones.shape), *rng.normal(0, 0.1, [2, *ones.shape]), ones]
            layer.set_weights(draws)


def measure_frames(case: dict[str, Any], predictor: Any) -> dict[str, Any]:
    """Times the pipeline on a folder of frames and the network alone, in the same process."""
    from mapseg.inference.frames import find_frames
    from mapseg.inference.infer import infer_frames
    from mapseg.inference.output_classes import output_classes
    from mapseg.inference.reading import read_image
    from mapseg.runs.folder import open_run

    returned = []

    def segment(frames: Any) -> Any:
        segmentations = predictor.segment_batch(frames)
        returned.append(time.perf_counter())
        return segmentations

    with tempfile.TemporaryDirectory() as out_dir:
        batch_size = 8 if machine.gpus() else 1
        config = InferConfig(frames=case["frames"], out_dir=out_dir, batch_size=batch_size)
        frame_list = find_frames(config)
        if len(frame_list.frames) <= FIRST_FRAMES:
            raise ValueError(
                f"frames must be more than {FIRST_FRAMES}, which are not timed; got "
                f"{len(frame_list.frames)}. Remedy: choose other --frames"
            )
        classes = output_classes(open_run(Path(case["source"])).label_set)
        infer_frames(segment, classes, frame_list, config, lambda _: None, "benchmark")
        ended = time.perf_counter()
    frames = [read_image(f.path)[None] for f in frame_list.frames[FIRST_FRAMES:]]
    begun = time.perf_counter()
    for frame in frames:
        _ = predictor.segment_batch(frame)[0].ids
    network = time.perf_counter() - begun
    return {
        "frame_ms": 1000 * (ended - returned[FIRST_FRAMES - 1]) / len(frames),
        "network_ms": 1000 * network / len(frames),
        "peak_rss_mb": machine.used_bytes("peak") >> 20,
    }


def main() -> int:
    """Runs the benchmark, or one measurement of it."""
    return run_benchmark(work, define_flags(), sys.argv, __doc__, measure)


if __name__ == "__main__":
    sys.exit(main())
