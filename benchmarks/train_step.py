"""Times training steps: images/s, first step, memory, FLOP/s; on the device's own and on real data.

    python benchmarks/train_step.py [--encoders=resnet50,xception65] [--crop=513] [--batches=1,16]
        [--precisions=auto] [--records_dir=R] [--twin="python torch_twin.py"] [--json=FILE]

Every case has its own process. Synthetic batches lie on the device; with --records_dir the same
step is then fed from records, as in training. --twin is a command that takes ARCH HxW BATCH 0 train
and prints a JSON line with images_per_s; it is run after the same case, on the same machine. On a
GPU memory is the allocator's peak, on a CPU the growth of the process.
"""

import json
import os
import resource
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
    flags.DEFINE_string("records_dir", "", "train from these too", flag_values=values)
    flags.DEFINE_string("twin", "", "another program to time", flag_values=values)
    flags.DEFINE_float("peak_tflops", 0.0, "of the device, for its utilisation", flag_values=values)
    flags.DEFINE_string("json", "", "where to write all figures", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a row for every case; 1 where one failed."""
    print(
        "| encoder | crop | batch | precision | images/s | first step | memory | TFLOP/s "
        "| from records | twin |\n" + "| --- " * 10 + "|"
    )
    rows, failed = [], 0
    for encoder in values.encoders:
        for precision in values.precisions:
            for batch in map(int, values.batches):
                case = {
                    "encoder": encoder,
                    "crop": values.crop,
                    "batch": batch,
                    "precision": precision,
                    "steps": values.steps,
                    "xla": values.xla,
                    "records_dir": values.records_dir,
                }
                found = run_json([sys.executable, __file__, "--case", json.dumps(case)])
                if values.twin and found is not None:
                    size = f"{values.crop}x{values.crop}"
                    found["twin"] = run_json(
                        [*shlex.split(values.twin), encoder, size, str(batch), "0", "train"]
                    )
                failed += found is None
                rows.append({**case, **(found or {})})
                print(table_row(rows[-1], values.peak_tflops), flush=True)
    if values.json:
        Path(values.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def run_json(command: Sequence[str]) -> dict[str, Any] | None:
    """Runs a program; returns the JSON of its last line, or nothing where it failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def table_row(row: dict[str, Any], peak_tflops: float) -> str:
    """Writes a case as a row of the table."""
    head = f"| {row['encoder']} | {row['crop']}x{row['crop']} | {row['batch']} |"
    if "images_per_s" not in row:
        return f"{head} {row['precision']} | failed | | | | | |"
    flops = row["images_per_s"] * row["gflop_per_image"] / 1e3
    share = f" ({flops / peak_tflops:.0%})" if peak_tflops else ""
    rate, others = row["images_per_s"], []
    fed, twin = row.get("fed_images_per_s"), (row.get("twin") or {}).get("images_per_s")
    others.append(f"{fed:.1f} ({fed / rate:.0%})" if fed else "")
    others.append(f"{twin:.1f}, mapseg {rate / twin:.2f} x" if twin else "")
    return (
        f"{head} {row['resolved_precision']} | {rate:.1f} | {row['first_step_secs']:.1f} s "
        f"| {row['memory_mb'] / 1e3:.2f} GB | {flops:.2f}{share} | {' | '.join(others)} |"
    )


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Times one case."""
    import numpy as np
    import tensorflow as tf

    from mapseg.checkpoints import Run
    from mapseg.config import ModelConfig, TrainConfig
    from mapseg.labels import LabelClass, make_label_set
    from mapseg.train import build_state, make_step, resolve_precision

    crop, batch = case["crop"], case["batch"]
    config = TrainConfig(
        batch_size=batch,
        crop_height=crop,
        crop_width=crop,
        precision=resolve_precision(case["precision"]),
        xla=case["xla"],
        schedule_steps=10_000,
    )
    model = ModelConfig(encoder=case["encoder"], encoder_weights="none")
    classes = [LabelClass(i, str(i), (i, i, i)) for i in range(CLASSES)]
    run = Run(Path(), model, config, make_label_set(classes, "all"), crop, (), "")
    state = build_state(run, lambda _: None, fresh=True)
    step = make_step(state, config, tf.distribute.get_strategy())
    rng = np.random.default_rng(0)
    image = tf.constant(rng.integers(0, 256, [batch, crop, crop, 3], np.uint8))
    label = tf.constant(rng.integers(0, CLASSES, [batch, crop, crop], np.uint8))
    before = resident_mb()
    started = time.perf_counter()
    float(step(image, label)[0])
    found = {"first_step_secs": time.perf_counter() - started}
    found["images_per_s"] = batch / seconds_of(case["steps"], lambda: step(image, label))
    if tf.config.list_physical_devices("GPU"):
        found["memory_mb"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    else:
        found["memory_mb"] = resident_mb() - before
    if case["records_dir"]:
        from mapseg.pipeline import train_batches

        batches = iter(train_batches(Path(case["records_dir"]), config))
        found["fed_images_per_s"] = batch / seconds_of(case["steps"], lambda: step(*next(batches)))
    return {
        **found,
        "resolved_precision": config.precision,
        "gflop_per_image": TRAIN_TO_FORWARD * forward_gflop(state.model, crop),
    }


def seconds_of(count: int, step: Callable[[], Any]) -> float:
    """Returns the seconds of a step: the host waits for the device before and after all."""
    float(step()[0])
    started = time.perf_counter()
    for _ in range(count):
        loss, _ = step()
    float(loss)
    return (time.perf_counter() - started) / count


def forward_gflop(model: Any, crop: int) -> float:
    """Counts the operations of a forward pass; a multiplication and an addition are two."""
    import tensorflow as tf

    profiler = tf.compat.v1.profiler
    graph = tf.function(lambda image: model(image, training=False)).get_concrete_function(
        tf.TensorSpec([1, crop, crop, 3], tf.uint8)
    )
    options = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return profiler.profile(graph.graph, options=options).total_float_ops / 1e9


def resident_mb() -> float:
    """Returns the peak of the process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if argv[1:2] == ["--case"]:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        print(json.dumps(measure(json.loads(argv[2]))))
        return 0
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
