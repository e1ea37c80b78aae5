"""Times each TensorFlow operation of a prediction or a training step, by TensorFlow's profiler.

    python benchmarks/operations.py [--mode=infer|train] [--encoder=resnet50] [--batch=1]
        [--size=375x1242] [--crop=513] [--calls=3] [--top=20] [--by_name]

The network has random weights; a prediction is of frames of --size, a training step is of crops,
with cross entropy. Prints, for each kind of operation, its count and its milliseconds per call;
with --by_name, for each operation of the graph. On a GPU, times are those of kernels, grouped by
operation. Operations that run side by side may add up to more than the call.
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from infer import load
from train_step import OPTIONS, build
from train_step import define_flags as define_training_flags

from mapseg import cli
from mapseg.config import ENCODERS

MODES = ("infer", "train")


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_enum("mode", MODES[0], MODES, "what to time", flag_values=values)
    flags.DEFINE_enum("encoder", "resnet50", ENCODERS, "encoder", flag_values=values)
    flags.DEFINE_string("size", "375x1242", "size of a frame, HEIGHTxWIDTH", flag_values=values)
    for name, default, help_text in (
        ("crop", 513, "side of a crop in pixels"),
        ("batch", 1, "frames or crops in a batch"),
        ("calls", 3, "calls to record, after a warm-up call"),
        ("top", 20, "rows to print"),
        ("output_stride", 16, "output stride of the encoder"),
    ):
        flags.DEFINE_integer(name, default, help_text, lower_bound=1, flag_values=values)
    help_text = "a row for each operation instead of each kind"
    flags.DEFINE_bool("by_name", False, help_text, flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints the table."""
    call = prediction(values) if values.mode == "infer" else training_step(values)
    call()
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            started = time.perf_counter()
            for _ in range(values.calls):
                call()
            secs = time.perf_counter() - started
        (trace,) = Path(folder).rglob("*.xplane.pb")
        print("\n".join(table(read_operations(trace), secs, values)))
    return 0


def prediction(values: flags.FlagValues) -> Callable[[], Any]:
    """Returns a function that segments a batch of noise and waits for the ids."""
    import numpy as np

    shape = (values.batch, *cli.size(values, "size"), 3)
    case = {"source": values.encoder, "is_run": False, "tile_px": 4097, "decoder_channels": 256}
    predictor, *_ = load({**case, "output_stride": values.output_stride})
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: [segmentation.ids for segmentation in predictor.segment_batch(frames)]


def training_step(values: flags.FlagValues) -> Callable[[], Any]:
    """Returns a function that takes one step on a batch of noise and waits for the loss."""
    import tensorflow as tf

    defaults = define_training_flags()
    defaults([sys.argv[0]])
    case = {name: defaults[name].value for name in (*OPTIONS, "keras_convolutions")}
    case |= {"encoder": values.encoder, "crop": values.crop, "batch": values.batch}
    training = build({**case, "precision": "auto", "output_stride": values.output_stride})
    batches = iter(training.batches)
    return lambda: float(training.steps(batches, tf.constant(1))[0][0])


class Operation(NamedTuple):
    """An operation that ran once.

    Attributes:
      name: its name in the graph; on a GPU, that of the kernel if the operation is unknown.
      kind: its type, such as Conv2D; equal to the name if unknown.
      ms: the time it took, in milliseconds.
    """

    name: str
    kind: str
    ms: float


def table(operations: Iterable[Operation], secs: float, values: flags.FlagValues) -> list[str]:
    """Returns the lines of the table: the longest operations, and their share of the total."""
    times: dict[str, list[float]] = defaultdict(list)
    for operation in operations:
        times[operation.name if values.by_name else operation.kind].append(operation.ms)
    total, calls = sum(map(sum, times.values())), values.calls
    if not total:
        raise RuntimeError(
            "TensorFlow's profiler must record operations; it recorded none. Remedy: on a GPU, "
            "allow profiling for all users (NVIDIA's setting NVreg_RestrictProfilingToAdminUsers)"
        )
    longest = sorted(times.items(), key=lambda item: sum(item[1]), reverse=True)[: values.top]
    rows = [
        f"| {name} | {len(each) / calls:g} | {sum(each) / calls:.2f} | {sum(each) / total:.1%} |"
        for name, each in longest
    ]
    title = f"{values.encoder}, {values.mode}, batch {values.batch}: "
    title += f"{1000 * secs / calls:.1f} ms per call, operations {total / calls:.1f} ms"
    return [title, "| operation | count | ms | share |", "| --- " * 4 + "|", *rows]


def read_operations(trace: Path) -> Iterator[Operation]:
    """Yields the operations of a profile: those of the CPU, or the kernels and copies of GPUs."""
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    planes = XSpace.FromString(trace.read_bytes()).planes
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in devices or planes:
        for line in plane.lines:
            for event in line.events:
                name = own = plane.event_metadata[event.metadata_id].name
                for stat in event.stats:
                    if devices and plane.stat_metadata[stat.metadata_id].name == "tf_op":
                        name = stat.str_value or plane.stat_metadata[stat.ref_value].name
                # TensorFlow names an operation NAME:KIND; a kernel may be called a::b<c>.
                node, colon, kind = name.partition(":")
                if colon and kind.isidentifier():
                    yield Operation(node, kind, event.duration_ps / 1e9)
                elif devices:
                    yield Operation(own, own, event.duration_ps / 1e9)


def main() -> int:
    """Runs the benchmark; returns its exit code."""
    return cli.run(work, define_flags(), sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
