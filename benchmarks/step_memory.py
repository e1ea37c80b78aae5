"""Measures the memory of a training step by encoder, crop and batch; prints a table.

    python benchmarks/step_memory.py [--encoders=resnet50,...] [--crops=513] [--batches=1,2]
        [--precision=auto]

Each case runs in a process of its own: on a GPU the figure is the peak that TensorFlow's allocator
reports, on a CPU the growth of the process's resident memory over one step.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from mapseg import cli
from mapseg.config import ENCODERS, PRECISIONS

_CLASSES = 65


def define_flags() -> flags.FlagValues:
    """Defines what the program takes."""
    values = flags.FlagValues()
    flags.DEFINE_list("encoders", list(ENCODERS), "encoders to measure", flag_values=values)
    flags.DEFINE_list("crops", ["513"], "sides of square crops, in pixels", flag_values=values)
    flags.DEFINE_list("batches", ["1", "2"], "batch sizes", flag_values=values)
    flags.DEFINE_enum("precision", "auto", PRECISIONS, "precision", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Runs every case and prints a row for each."""
    print("| encoder | crop | batch | precision | memory of a step | first step | next step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for encoder in values.encoders:
        for crop in values.crops:
            for batch in values.batches:
                case = [encoder, crop, batch, values.precision]
                command = [sys.executable, __file__, "--case", *case]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    told = done.stderr.strip().splitlines()[-1:]
                    print(f"| {encoder} | {crop}x{crop} | {batch} | failed: {told} |")
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"| {encoder} | {crop}x{crop} | {batch} | {found['precision']} "
                    f"| {found['memory_mb'] / 1000:.2f} GB | {found['first_step_secs']:.1f} s "
                    f"| {found['next_step_secs']:.2f} s |",
                    flush=True,
                )
    return 0


def measure(encoder: str, crop_px: int, batch_size: int, precision: str) -> dict[str, float | str]:
    """Runs two steps on random crops."""
    import numpy as np
    import tensorflow as tf

    from mapseg.checkpoints import Run
    from mapseg.config import ModelConfig, TrainConfig
    from mapseg.labels import LabelClass, make_label_set
    from mapseg.train import build_state, make_step, resolve_precision

    config = TrainConfig(
        batch_size=batch_size, precision=resolve_precision(precision), schedule_steps=10
    )
    classes = [LabelClass(i, str(i), (i, i, i)) for i in range(_CLASSES)]
    model = ModelConfig(encoder=encoder, encoder_weights="none")
    run = Run(None, model, config, make_label_set(classes, "all"), crop_px, (), "")
    state = build_state(run, print, fresh=True)
    step = make_step(state, config, tf.distribute.get_strategy())
    rng = np.random.default_rng(0)
    image = tf.constant(rng.integers(0, 256, [batch_size, crop_px, crop_px, 3], np.uint8))
    label = tf.constant(rng.integers(0, _CLASSES, [batch_size, crop_px, crop_px], np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    secs = []
    for _ in range(2):
        started = time.perf_counter()
        _ = float(step(image, label)[0])
        secs.append(time.perf_counter() - started)
    if tf.config.list_physical_devices("GPU"):
        memory_mb = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    else:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory_mb = (after - before) * 1024 / 1e6
    return {
        "memory_mb": memory_mb,
        "first_step_secs": secs[0],
        "next_step_secs": secs[1],
        "precision": config.precision,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if argv[1:2] == ["--case"]:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        encoder, crop, batch, precision = argv[2:]
        print(json.dumps(measure(encoder, int(crop), int(batch), precision)))
        return 0
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
