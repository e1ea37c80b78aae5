"""Times training steps: images/s, first step, memory, FLOP/s; on the device's own and on real data.

    python benchmarks/train_step.py [--encoders=resnet50,xception65] [--crop=513] [--batches=1,16]
        [--precisions=auto] [--records_dir=R] [--twin="python torch_twin.py"] [--json=FILE]

Every case has its own process. The synthetic batch is copied to the device ahead of its step, as
others are; with --records_dir the same
step is then fed from records, as in training. --twin is a command that takes ARCH HxW BATCH 0 train
and prints a JSON line with images_per_s; it is run after the same case, on the same machine;
--twin_flops is one that takes --encoder and --crop and prints its forward_gflop. With
--compile_cache_dir, an empty folder, each case is run once more, for its first step with what the
first process left there. On a GPU memory is the allocator's peak, on a CPU the growth of the
process.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mapseg import cli
from mapseg.config import ENCODERS, PRECISIONS

CLASSES = 66
TRAIN_TO_FORWARD = 3  # the gradients of inputs and of weights cost a forward pass each
CROPS_2018 = 100_000  # the steps of 2018, of one crop; 10 hours then
COLUMNS = (
    "encoder",
    "crop",
    "batch",
    "precision",
    "images/s",
    "100,000 crops",
    "first step (with cache)",
    "memory",
    "GFLOP an image (twin)",
    "TFLOP/s",
    "from records",
    "twin",
)


def define_flags() -> flags.FlagValues:
    """Defines what the program takes."""
    values = flags.FlagValues()
    flags.DEFINE_list(
        "encoders", ["resnet50", "xception65"], "of " + ", ".join(ENCODERS), flag_values=values
    )
    flags.DEFINE_integer("crop", 513, "side of a crop in pixels", flag_values=values)
    flags.DEFINE_list("batches", ["1", "16"], "batch sizes", flag_values=values)
    flags.DEFINE_list("precisions", ["auto"], "of " + ", ".join(PRECISIONS), flag_values=values)
    flags.DEFINE_integer("steps", 50, "that are timed", flag_values=values)
    flags.DEFINE_string("xla", "auto", "auto, on or off", flag_values=values)
    flags.DEFINE_integer("steps_per_call", 0, "as in training", flag_values=values)
    flags.DEFINE_integer("accumulate_steps", 1, "as in training", flag_values=values)
    flags.DEFINE_bool("recompute", False, "as in training", flag_values=values)
    flags.DEFINE_bool("keras_convolutions", False, "not those for XLA", flag_values=values)
    flags.DEFINE_string("compile_cache_dir", "", "an empty folder", flag_values=values)
    flags.DEFINE_string("records_dir", "", "train from these too", flag_values=values)
    flags.DEFINE_string("twin", "", "another program to time", flag_values=values)
    flags.DEFINE_string("twin_flops", "", "a program that counts its FLOP", flag_values=values)
    flags.DEFINE_float("peak_tflops", 0.0, "of the device, for its utilisation", flag_values=values)
    flags.DEFINE_string("json", "", "where to write all figures", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a row for every case; 1 where one failed."""
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|", flush=True)
    rows, failed = [], 0
    for encoder in values.encoders:
        for precision in values.precisions:
            for batch in map(int, values.batches):
                case = {"encoder": encoder, "batch": batch, "precision": precision}
                for name in (
                    *("crop", "steps", "xla", "steps_per_call", "accumulate_steps", "recompute"),
                    *("keras_convolutions", "compile_cache_dir", "records_dir"),
                ):
                    case[name] = values[name].value
                rows.append({**case, **run_case(case, values.twin, values.twin_flops)})
                failed += "images_per_s" not in rows[-1]
                print(table_row(rows[-1], values.peak_tflops), flush=True)
                if values.json:  # after each case: a later one may be cut off
                    text = json.dumps(rows, indent=1) + "\n"
                    Path(values.json).write_text(text, encoding="utf-8")
    return 1 if failed else 0


def run_case(case: dict[str, Any], twin: str, twin_flops: str) -> dict[str, Any]:
    """Runs a case, and its twin, each in a process of its own; returns what is to be had."""
    own = [sys.executable, __file__, "--case", json.dumps(case)]
    found = run_json(own)
    if found and case["compile_cache_dir"]:
        again = run_json(own)
        found["cached_first_step_secs"] = again and again["first_step_secs"]
    encoder, crop = case["encoder"], str(case["crop"])
    if found and twin:
        size = [encoder, f"{crop}x{crop}", str(case["batch"]), "0", "train"]
        found["twin"] = run_json([*shlex.split(twin), *size])
    if found and twin_flops:
        counted = run_json([*shlex.split(twin_flops), f"--encoder={encoder}", f"--crop={crop}"])
        found["twin_gflop_per_image"] = counted and counted["forward_gflop"]
    return found or {}


def run_json(command: Sequence[str]) -> dict[str, Any] | None:
    """Runs a program; returns the JSON of its last line, or nothing where it failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def table_row(row: dict[str, Any], peak_tflops: float) -> str:
    """Writes a case as a row of the table."""
    cells = [row["encoder"], f"{row['crop']}x{row['crop']}", str(row["batch"])]
    if "images_per_s" not in row:
        return f"| {' | '.join(cells)} | {row['precision']} | failed {'| ' * 8}|"
    rate, gflop = row["images_per_s"], row["forward_gflop_per_image"]
    flops = rate * TRAIN_TO_FORWARD * gflop / 1e3
    cached, of_twin = row.get("cached_first_step_secs"), row.get("twin_gflop_per_image")
    fed, twin = row.get("fed_images_per_s"), (row.get("twin") or {}).get("images_per_s")
    cells += [
        row["resolved_precision"],
        f"{rate:.1f}",
        f"{CROPS_2018 / rate / 60:.1f} min",
        f"{row['first_step_secs']:.1f} s" + (f" ({cached:.1f} s)" if cached else ""),
        f"{row['memory_mb'] / 1e3:.2f} GB",
        f"{gflop:.1f}" + (f" ({of_twin:.1f})" if of_twin else ""),
        f"{flops:.2f}" + (f" ({flops / peak_tflops:.0%})" if peak_tflops else ""),
        f"{fed:.1f} ({fed / rate:.0%})" if fed else "",
        f"{twin:.1f}, mapseg {rate / twin:.2f} x" if twin else "",
    ]
    return f"| {' | '.join(cells)} |"


# Long: what is measured, in the order in which it is.
def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Times one case."""
    if case["compile_cache_dir"]:
        from mapseg.compiling import use_compile_cache

        use_compile_cache(Path(case["compile_cache_dir"]))
    import numpy as np
    import tensorflow as tf

    from mapseg.config import ModelConfig, TrainConfig
    from mapseg.data.batches import CropStream
    from mapseg.data.manifest import read_manifest
    from mapseg.data.sharing import onto_device, share_batches
    from mapseg.labels import LabelClass, make_label_set
    from mapseg.machine import gpus, taken_bytes
    from mapseg.runs.folder import Run
    from mapseg.training.prepare import resolve_precision
    from mapseg.training.state import build_state
    from mapseg.training.step import make_step, make_steps, steps_per_call

    crop, batch = case["crop"], case["batch"]
    names = ("xla", "steps_per_call", "accumulate_steps", "recompute")
    config = TrainConfig(
        batch_size=batch,
        crop_height=crop,
        crop_width=crop,
        precision=resolve_precision(case["precision"]),
        schedule_steps=10_000,
        strategy="one_device",
        **{name: case[name] for name in names},
    )
    model = ModelConfig(encoder=case["encoder"], encoder_weights="none")
    classes = [LabelClass(i, str(i), (i, i, i)) for i in range(CLASSES)]
    run = Run(Path(), model, config, make_label_set(classes, "all"), crop, (), "")
    state = build_state(run, lambda _: None, fresh=True)
    if case["keras_convolutions"]:
        use_keras_convolutions(state.model)
    steps = make_steps(make_step(state, config, tf.distribute.get_strategy()))
    rng = np.random.default_rng(0)
    image = tf.constant(rng.integers(0, 256, [batch, crop, crop, 3], np.uint8))
    label = tf.constant(rng.integers(0, CLASSES, [batch, crop, crop], np.uint8))
    synthetic = onto_device(tf.data.Dataset.from_tensors((image, label)).repeat())
    on_gpu, before = bool(gpus()), taken_bytes("peak")
    started = time.perf_counter()
    batches = iter(synthetic)
    float(steps(batches, tf.constant(1))[0][0])
    found = {"first_step_secs": time.perf_counter() - started}
    most = steps_per_call(config)

    def secs_of_step(batches: Any) -> float:
        return seconds(case["steps"], most, lambda count: steps(batches, tf.constant(count))[0])

    found["images_per_s"] = batch / secs_of_step(batches)
    found["memory_mb"] = (taken_bytes("peak") - (0 if on_gpu else before)) / 1e6
    if case["records_dir"]:
        manifest = read_manifest(case["records_dir"])
        labels = make_label_set(manifest.classes, config.label_set)
        stream = CropStream(manifest, config, labels)
        fed = iter(share_batches(stream, tf.distribute.get_strategy(), 0, 1, 0))
        found["fed_images_per_s"] = batch / secs_of_step(fed)
    return {
        **found,
        "resolved_precision": config.precision,
        "forward_gflop_per_image": forward_gflop(state.model, crop),
    }


def use_keras_convolutions(model: Any) -> None:
    """Undoes `use_forms_for_xla`, to compare with it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            use_keras_convolutions(layer)
        elif getattr(layer, "for_xla", False):
            layer.for_xla = False


def seconds(count: int, most: int, take: Callable[[int], Any]) -> float:
    """Returns the seconds of a step: the host waits for the device before and after all."""
    float(take(1)[0])
    started = time.perf_counter()
    for done in range(0, count, most):
        losses = take(min(most, count - done))
    float(losses[-1])
    return (time.perf_counter() - started) / count


def forward_gflop(model: Any, crop: int) -> float:
    """Counts the operations of a forward pass; a multiplication and an addition are two.

    The last up-sampling is left out: in training it is part of the loss.
    """
    import keras
    import tensorflow as tf

    coarse = keras.Model(model.input, model.get_layer("logits-semantic").output)
    profiler = tf.compat.v1.profiler
    graph = tf.function(lambda image: coarse(image, training=False)).get_concrete_function(
        tf.TensorSpec([1, crop, crop, 3], tf.uint8)
    )
    options = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return profiler.profile(graph.graph, options=options).total_float_ops / 1e9


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if argv[1:2] == ["--case"]:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        print(json.dumps(measure(json.loads(argv[2]))))
        return 0
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
