"""Times training steps on synthetic batches and on records: images/s, first step, memory, FLOP/s.

    python benchmarks/train_step.py [--encoders=resnet50,xception65] [--crop=513] [--batches=1,16]
        [--precisions=auto] [--rounds=3] [--records_dir=R] [--former=CHECKOUT] [--check]
        [--twin="python torch_cpu.py ARCH SIZE BATCH MODE CALLS"] [--json=FILE]

Each measurement runs in a separate process; the programs of a case alternate, `--rounds` times, and
the figures are medians. The synthetic batch is prefetched to the device, as in training. With
--records_dir the same step is also timed on batches from records. On a GPU, memory is the
allocator's peak; on a CPU, the growth of the process.

--twin is a command in which the words ARCH, SIZE, BATCH, MODE and CALLS are replaced; it prints a
JSON line with images_per_s. --twin_flops is a command that accepts --encoder and --crop and prints
forward_gflop. --former is another checkout of mapseg; with --records_dir, the CPU seconds that
train_main.py needs to start and take one step are compared between it and this checkout.
--compile_cache_dir, an empty folder, adds the time of the first step with a warm compile cache.
--check exits with 1 if a target in TARGETS or START_TARGET is missed.
"""

# Long: every row of one table of docs/benchmarks.md, and the checks of its targets.
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from absl import flags
from programs import (
    describe_machine,
    rival_command,
    run_benchmark,
    run_child,
    run_json,
    take_turns,
)

from mapseg.config import ENCODERS, PRECISIONS

CLASSES = 66
TRAIN_TO_FORWARD = 3  # the gradients of inputs and of weights cost a forward pass each
CROPS_2018 = 100_000  # steps of one crop in 2018, which took 10 hours
# (encoder, crop, batch) on a CPU -> maximum ratio of our time to the twin's.
TARGETS = {("mobilenet_v2", 513, 2): 0.6, ("mobilenet_v2", 193, 4): 0.8}
START_TARGET = 0.6  # maximum ratio of CPU seconds for start and first step to the former version's
CHECKOUT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "encoder",
    "crop",
    "batch",
    "precision",
    "images/s",
    "step",
    "of the twin's time",
    "100,000 crops",
    "first step (with cache)",
    "CPU of start, of the former's",
    "memory",
    "GFLOP an image (twin)",
    "TFLOP/s",
    "from records",
)
OPTIONS = ("loss", "xla", "accumulate_steps", "recompute")  # of TrainConfig
MEASURED = (
    "crop",
    "output_stride",
    "steps",
    "keras_convolutions",
    "compile_cache_dir",
    "records_dir",
)


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_list(
        "encoders",
        ["resnet50", "xception65"],
        "encoders to time: " + ", ".join(ENCODERS),
        flag_values=values,
    )
    flags.DEFINE_integer("crop", 513, "side of a crop in pixels", flag_values=values)
    flags.DEFINE_integer(
        "output_stride", 16, "output stride; ddrnet23_slim has 8", flag_values=values
    )
    flags.DEFINE_list("batches", ["1", "16"], "batch sizes to time", flag_values=values)
    flags.DEFINE_list(
        "precisions", ["auto"], "precisions to time: " + ", ".join(PRECISIONS), flag_values=values
    )
    flags.DEFINE_integer("steps", 50, "timed steps", flag_values=values)
    flags.DEFINE_string(
        "loss", "ce", "loss, as in train_main.py; the other program's is ce", flag_values=values
    )
    flags.DEFINE_string(
        "xla", "auto", "compile the step with XLA: auto, on, off", flag_values=values
    )
    flags.DEFINE_integer(
        "accumulate_steps", 1, "parts of a batch, as in train_main.py", flag_values=values
    )
    flags.DEFINE_bool(
        "recompute", False, "recompute activations, as in train_main.py", flag_values=values
    )
    flags.DEFINE_bool(
        "keras_convolutions",
        False,
        "use Keras's depthwise convolutions under XLA",
        flag_values=values,
    )
    flags.DEFINE_string(
        "compile_cache_dir", "", "empty folder for the compile cache", flag_values=values
    )
    flags.DEFINE_string("records_dir", "", "records to also time steps on", flag_values=values)
    flags.DEFINE_integer("rounds", 3, "number of times each program runs", flag_values=values)
    flags.DEFINE_string(
        "former", "", "another checkout of mapseg to compare with", flag_values=values
    )
    flags.DEFINE_string(
        "twin", "", "command of another program to compare with", flag_values=values
    )
    flags.DEFINE_string(
        "twin_flops", "", "command that counts the FLOP of that program", flag_values=values
    )
    flags.DEFINE_float(
        "peak_tflops", 0.0, "peak TFLOP/s of the device, for the share used", flag_values=values
    )
    flags.DEFINE_bool("check", False, "exit with code 1 if a target is missed", flag_values=values)
    flags.DEFINE_string("json", "", "file to write all figures to", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a row for every case; returns 1 if one failed or, with --check, missed a target."""
    if values.former and not values.records_dir:
        raise ValueError("records_dir must be given with --former. Remedy: --records_dir=...")
    print(describe_machine())
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|", flush=True)
    rows, failures, missed = [], 0, []
    for encoder in values.encoders:
        for precision in values.precisions:
            for batch in map(int, values.batches):
                case = {"encoder": encoder, "batch": batch, "precision": precision}
                case |= {name: values[name].value for name in (*OPTIONS, *MEASURED)}
                try:
                    rows.append({**case, **run_case(case, values)})
                except ChildProcessError as error:  # perhaps out of memory: smaller cases may fit
                    print(f"failed: {error}", file=sys.stderr)
                    rows.append(case)
                    failures += 1
                print(table_row(rows[-1], values.peak_tflops), flush=True)
                missed += misses(rows[-1])
                if values.json:  # after each case, in case a later one is killed
                    text = json.dumps(rows, indent=1) + "\n"
                    Path(values.json).write_text(text, encoding="utf-8")
    for line in missed:
        print(f"missed: {line}")
    return 1 if failures or (missed and values.check) else 0


def run_case(case: dict[str, Any], values: flags.FlagValues) -> dict[str, Any]:
    """Runs a case alternately with its comparisons; returns the figures."""
    ours = partial(run_child, __file__, case)
    encoder, crop = case["encoder"], case["crop"]
    programs = {"mapseg": ours}
    if values.twin:
        words = {"ARCH": encoder, "SIZE": f"{crop}x{crop}", "BATCH": case["batch"]}
        words |= {"MODE": "train", "CALLS": case["steps"]}
        programs["twin"] = partial(run_json, rival_command(values.twin, **words))
    turns = take_turns(programs, values.rounds)
    first = turns["mapseg"][0]
    figures = {**first, "turns": turns}
    for name in ("images_per_s", "fed_images_per_s"):
        if name in first:
            figures[name] = median(turn[name] for turn in turns["mapseg"])
    if case["compile_cache_dir"]:
        cached = turns["mapseg"][1] if values.rounds > 1 else ours()
        figures["cached_first_step_secs"] = cached["first_step_secs"]
    if values.twin:
        rate = median(turn["images_per_s"] for turn in turns["twin"])
        figures["of_twins_time"] = rate / figures["images_per_s"]
    if values.twin_flops:
        counter = rival_command(values.twin_flops)
        counted = run_json([*counter, f"--encoder={encoder}", f"--crop={crop}"])
        figures["twin_gflop_per_image"] = counted["forward_gflop"]
    if values.former:
        checkouts = {"own": CHECKOUT, "former": Path(values.former)}
        starts = {name: partial(start_cpu_secs, case, place) for name, place in checkouts.items()}
        secs = take_turns(starts, values.rounds)
        figures["start_cpu_secs"] = {name: median(each) for name, each in secs.items()}
    return figures


def start_cpu_secs(case: dict[str, Any], checkout: Path) -> float:
    """Returns the CPU seconds of a checkout's train_main.py for one step and its checkpoint."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "train_main.py", "--mode=train", f"--run_dir={folder}/run"),
            *(f"--records_dir={Path(case['records_dir']).absolute()}", "--steps=1"),
            *(f"--encoder={case['encoder']}", "--encoder_weights=none", f"--loss={case['loss']}"),
            "--compile_cache_dir=",
            *(f"--batch_size={case['batch']}", f"--precision={case['precision']}"),
            *(f"--crop_height={case['crop']}", f"--crop_width={case['crop']}"),
        ]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"{checkout}: train_main.py must succeed; {done.stderr[-1000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def misses(row: dict[str, Any]) -> list[str]:
    """Returns the targets that a case misses."""
    title = f"{row['encoder']}, {row['crop']}x{row['crop']}, batch {row['batch']}"
    most = TARGETS.get((row["encoder"], row["crop"], row["batch"]))
    missed = []
    if most and not row.get("gpu") and row.get("of_twins_time", 0) > most:
        missed.append(f"{title}: {row['of_twins_time']:.2f} of the twin's time, at most {most}")
    if start := row.get("start_cpu_secs"):
        ratio = start["own"] / start["former"]
        if ratio > START_TARGET:
            missed.append(f"{title}: {ratio:.2f} of the former's start, at most {START_TARGET}")
    return missed


def table_row(row: dict[str, Any], peak_tflops: float) -> str:
    """Formats a case as a row of the table."""
    cells = [row["encoder"], f"{row['crop']}x{row['crop']}", str(row["batch"])]
    if "images_per_s" not in row:
        empty = "| " * (len(COLUMNS) - 5)
        return f"| {' | '.join(cells)} | {row['precision']} | failed {empty}|"
    rate, gflop = row["images_per_s"], row["forward_gflop_per_image"]
    flops = rate * TRAIN_TO_FORWARD * gflop / 1e3
    cached, of_twin = row.get("cached_first_step_secs"), row.get("twin_gflop_per_image")
    fed, ratio, start = (
        row.get(name) for name in ("fed_images_per_s", "of_twins_time", "start_cpu_secs")
    )
    cells += [
        row["resolved_precision"],
        f"{rate:.2f}",
        f"{1000 * row['batch'] / rate:.0f} ms",
        f"{ratio:.2f}" if ratio else "",
        f"{CROPS_2018 / rate / 60:.1f} min",
        f"{row['first_step_secs']:.1f} s" + (f" ({cached:.1f} s)" if cached else ""),
        f"{start['own']:.1f} s, {start['own'] / start['former']:.2f}" if start else "",
        f"{row['memory_mb'] / 1e3:.2f} GB",
        f"{gflop:.1f}" + (f" ({of_twin:.1f})" if of_twin else ""),
        f"{flops:.2f}" + (f" ({flops / peak_tflops:.0%})" if peak_tflops else ""),
        f"{fed:.1f} ({fed / rate:.0%})" if fed else "",
    ]
    return f"| {' | '.join(cells)} |"


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Times one case, in a separate process; returns its figures."""
    if case["compile_cache_dir"]:
        from mapseg.compiling import use_compile_cache

        use_compile_cache(Path(case["compile_cache_dir"]))
    import tensorflow as tf

    from mapseg.data.batches import CropStream
    from mapseg.data.manifest import read_manifest
    from mapseg.data.sharing import share_batches
    from mapseg.labels import make_label_set
    from mapseg.machine import gpus, used_bytes
    from mapseg.training.step import steps_per_call

    config, model, steps, synthetic = build(case)
    on_gpu, before = bool(gpus()), used_bytes("peak")
    started = time.perf_counter()
    batches = iter(synthetic)
    float(steps(batches, tf.constant(1))[0][0])
    figures = {"first_step_secs": time.perf_counter() - started}
    most = steps_per_call()

    def secs_of_step(batches: Any) -> float:
        return seconds(case["steps"], most, lambda count: steps(batches, tf.constant(count))[0])

    figures["images_per_s"] = case["batch"] / secs_of_step(batches)
    figures["memory_mb"] = (used_bytes("peak") - (0 if on_gpu else before)) / 1e6
    if case["records_dir"]:
        manifest = read_manifest(case["records_dir"])
        labels = make_label_set(manifest.classes, config.label_set)
        stream = CropStream(manifest, config, labels)
        fed = iter(share_batches(stream, tf.distribute.get_strategy(), 0, 1, 0))
        figures["fed_images_per_s"] = case["batch"] / secs_of_step(fed)
    return {
        **figures,
        "gpu": on_gpu,
        "resolved_precision": config.precision,
        "forward_gflop_per_image": forward_gflop(model, case["crop"]),
    }


class Training(NamedTuple):
    """A training that is ready to take steps.

    Attributes:
      config: its `TrainConfig`.
      model: the network.
      steps: the function of `make_steps`.
      batches: a dataset that repeats one batch of noise.
    """

    config: Any
    model: Any
    steps: Callable[..., Any]
    batches: Any


def build(case: dict[str, Any]) -> Training:
    """Builds a network with random weights, and its training step."""
    import numpy as np
    import tensorflow as tf

    from mapseg.config import ModelConfig, TrainConfig
    from mapseg.data.sharing import onto_device
    from mapseg.labels import LabelClass, make_label_set
    from mapseg.runs.folder import Run
    from mapseg.training.prepare import resolve_precision
    from mapseg.training.state import build_state
    from mapseg.training.step import make_step, make_steps

    crop, batch = case["crop"], case["batch"]
    config = TrainConfig(
        batch_size=batch,
        crop_height=crop,
        crop_width=crop,
        precision=resolve_precision(case["precision"]),
        schedule_steps=10_000,
        strategy="one_device",
        **{name: case[name] for name in OPTIONS},
    )
    model = ModelConfig(
        encoder=case["encoder"], encoder_weights="none", output_stride=case["output_stride"]
    )
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
    return Training(config, state.model, steps, synthetic)


def use_keras_convolutions(model: Any) -> None:
    """Reverts `use_forms_for_xla` for the convolutions, for comparison."""
    from mapseg.model.convolutions import Conv2D, DepthwiseConv2D

    for layer in model.layers:
        if hasattr(layer, "layers"):
            use_keras_convolutions(layer)
        elif isinstance(layer, Conv2D | DepthwiseConv2D):
            layer.for_xla = False


def seconds(count: int, most: int, take: Callable[[int], Any]) -> float:
    """Returns the seconds per step; the host waits for the device only at the start and end."""
    float(take(1)[0])
    started = time.perf_counter()
    for done in range(0, count, most):
        losses = take(min(most, count - done))
    float(losses[-1])
    return (time.perf_counter() - started) / count


def forward_gflop(model: Any, crop: int) -> float:
    """Counts the operations of a forward pass; a multiply-add counts as two.

    The final upsampling is excluded: in training it is part of the loss.
    """
    import tensorflow as tf

    from mapseg.model.deeplab import without_upsampling

    coarse, _ = without_upsampling(model)
    profiler = tf.compat.v1.profiler
    graph = tf.function(lambda image: coarse(image, training=False)).get_concrete_function(
        tf.TensorSpec([1, crop, crop, 3], tf.uint8)
    )
    options = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return profiler.profile(graph.graph, options=options).total_float_ops / 1e9


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_benchmark(work, define_flags(), argv, __doc__, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
