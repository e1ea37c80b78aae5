"""Compares mapseg's own implementations of parts of the training step with the usual ones.

    python benchmarks/forms.py [--crop=513] [--batch=2] [--dtype=float32]

Times the loss and its gradient, from upsampled logits and from coarse ones, and a dilated depthwise
convolution of 728 channels with its gradients, by Keras and by `mapseg.model.convolutions`. Each
runs with and without XLA in a separate process, whose memory growth is reported.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from programs import run_benchmark, run_child

CLASSES, CHANNELS, RATE, REPEATS = 66, 728, 2, 5
FORMS = {"loss": ("whole logits", "mapseg"), "depthwise": ("Keras", "mapseg")}


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_integer("crop", 513, "side of a crop in pixels, 16 k + 1", flag_values=values)
    flags.DEFINE_integer("batch", 2, "crops per step", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "dtype of the convolution", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a row for every implementation."""
    print("| part | form | XLA | first call | ms | growth |\n" + "| --- " * 6 + "|", flush=True)
    for part, forms in FORMS.items():
        for compiled in (False, True):
            for form in forms:
                case = [part, form, compiled, values.crop, values.batch, values.dtype]
                first, ms, mb = run_child(__file__, case)
                xla = "yes" if compiled else "no"
                print(f"| {part} | {form} | {xla} | {first:.1f} s | {ms:.0f} | {mb:.0f} MB |")
                sys.stdout.flush()
    return 0


def measure(case: Sequence[Any]) -> tuple[float, float, float]:
    """Returns the seconds of the first call, the ms of later calls, and the memory growth in MB."""
    part, form, compiled, crop, batch, dtype = case
    import tensorflow as tf

    from mapseg.machine import used_bytes

    function, inputs = (make_loss if part == "loss" else make_depthwise)(form, crop, batch, dtype)

    @tf.function(jit_compile=compiled)
    def run(*inputs: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(*inputs)
        return tape.gradient(value, inputs)

    before, started = used_bytes("peak"), time.perf_counter()
    run(*inputs)[0].numpy()
    first = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(REPEATS):
        gradients = run(*inputs)
    gradients[0].numpy()
    ms = (time.perf_counter() - started) / REPEATS * 1e3
    return first, ms, (used_bytes("peak") - before) / 1e6


def make_loss(
    form: str, crop: int, batch: int, _: str
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the loss as a function of logits at stride 4, and random logits."""
    import tensorflow as tf

    from mapseg.config import TrainConfig
    from mapseg.model.resampling import Upsample
    from mapseg.training import losses

    loss = losses.make_loss(TrainConfig(loss="ce"))
    size = (batch, crop, crop)
    label = tf.random.stateless_uniform(size, (1, 2), maxval=CLASSES, dtype=tf.int32)
    label = tf.cast(label, tf.uint8)
    side = (crop - 1) // 4 + 1
    logits = tf.random.stateless_normal([batch, side, side, CLASSES], (3, 4))
    if form == "mapseg":
        return (lambda logits: loss(logits, label, 4)[0]), (logits,)
    up_sample = Upsample(4, dtype="float32")
    return (lambda logits: loss(up_sample([logits, label]), label, 1)[0]), (logits,)


def make_depthwise(
    form: str, crop: int, batch: int, dtype: str
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a function of three successive convolutions at stride 16, their input and kernel."""
    import tensorflow as tf

    from mapseg.model.convolutions import depthwise_conv

    side = (crop - 1) // 16 + 1
    x = tf.cast(tf.random.stateless_normal([batch, side, side, CHANNELS], (1, 2)), dtype)
    kernel = tf.cast(tf.random.stateless_normal([3, 3, CHANNELS, 1], (3, 4)) / 3, dtype)

    def run(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        for _ in range(3):
            if form == "mapseg":
                x = depthwise_conv(x, kernel, RATE, RATE)
            else:
                rates = [RATE, RATE]
                x = tf.nn.depthwise_conv2d(x, kernel, [1] * 4, "SAME", dilations=rates)
            x = tf.nn.relu(x)
        return tf.reduce_sum(tf.cast(x, tf.float32) ** 2)

    return run, (x, kernel)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_benchmark(work, define_flags(), argv, __doc__, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
