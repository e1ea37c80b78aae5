"""Times training crops on one core: full decoding, partial JPEG decoding, and mapseg's decoding.

    python benchmarks/input_pipeline.py --vistas_dir=VISTAS [--crops=140] [--json=FILE]

The images are converted at full size; at about 0.2 and 2 megapixels with each original's JPEG
settings; and at 2 megapixels as `--max_side` stores them (quality 95, no chroma subsampling). For
each size one process, pinned to one core, alternately makes the same crops (same windows, same
augmentation) by all three methods, and batches through `train_batches`. Memory is measured in a
process per method. The benchmark also times the conversion with one and two workers, and counts
rare classes with and without class balance. All comparisons of methods are within one run.
"""

# Long: one benchmark of several stages that share a set-up.
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from programs import run_benchmark, run_child

from mapseg import cli

SIDES = {"0.2 MP": 516, "2 MP": 1633}  # longer side of a 4:3 image
WAYS = {
    "naive": "decode all, cut",
    "partial": "partial JPEG, whole label",
    "mapseg": "mapseg",
}
RARE = ("marking--general", "object--support--pole", "object--traffic-sign--front")
SEEN_PX = 100
BATCHES = 6
STAGES = ("read", "parse", "image", "label", "augment")


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("vistas_dir", "", "a Vistas folder of large images", flag_values=values)
    flags.DEFINE_integer("crops", 140, "crops per size and method", 10, flag_values=values)
    flags.DEFINE_integer(
        "copies", 24, "copies of the images to time the conversion of", 1, flag_values=values
    )
    flags.DEFINE_string("json", "", "file to write all figures to", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints the tables."""
    vistas_dir = Path(cli.required(values, "vistas_dir")).resolve()
    figures: dict[str, Any] = {"crops": {}, "memory_mb": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in (*SIDES, "2 MP, q95", "raw"):
            records_dir, source_dir, options = Path(folder, name.replace(" ", "")), vistas_dir, []
            if name in SIDES:
                source_dir = shrink_source(vistas_dir, Path(folder, f"{name} source"), SIDES[name])
            elif name != "raw":
                options = [f"--max_side={SIDES['2 MP']}"]
            convert(source_dir, records_dir, 0, *options)
            figures["crops"][name] = run_case("crops", records_dir, values.crops)
            figures["memory_mb"][name] = {
                way: run_case("memory", records_dir, way)["memory_mb"] for way in (*WAYS, "stream")
            }
        figures["shares"] = run_case("shares", Path(folder, "raw"), 2 * values.crops)
        print_crops(figures)
        copies_dir = copy_source(vistas_dir, Path(folder, "copies"), values.copies)
        figures["conversion"] = time_conversion(copies_dir, Path(folder))
    print_conversion(figures["conversion"])
    print_shares(figures["shares"])
    if values.json:
        Path(values.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def shrink_source(vistas_dir: Path, folder: Path, max_side: int) -> Path:
    """Makes a Vistas folder of smaller images, with the JPEG settings of each original."""
    import numpy as np
    from PIL import Image, JpegImagePlugin

    from data_prep.convert import Resize
    from mapseg.data.resizing import resize_image, resize_label

    for path in sorted((vistas_dir / "training/images").glob("*.jpg")):
        image = Image.open(path)
        label = Image.open(vistas_dir / "training/labels" / f"{path.stem}.png")
        size = Resize(max_side).target((image.height, image.width))
        small = Image.fromarray(resize_image(np.asarray(image), size))
        for kind in ("images", "labels"):
            (folder / "training" / kind).mkdir(parents=True, exist_ok=True)
        small.save(
            folder / "training/images" / path.name,
            qtables=image.quantization,
            subsampling=JpegImagePlugin.get_sampling(image),
        )
        ids = Image.fromarray(resize_label(np.asarray(label), size))
        ids.save(folder / "training/labels" / f"{path.stem}.png")
    for path in vistas_dir.glob("config*.json"):
        (folder / path.name).symlink_to(path)
    return folder


def run_case(name: str, records_dir: Path, argument: int | str) -> dict[str, Any]:
    """Runs one measurement in a separate process; returns its figures."""
    figures: dict[str, Any] = run_child(__file__, [name, str(records_dir), argument])
    return figures


def measure(case: Sequence[Any]) -> dict[str, Any]:
    """Runs the measurement that `run_case` names."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    name, records_dir, argument = case
    if name == "crops":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measurements: dict[str, Callable[[Path, Any], dict[str, Any]]] = {
        "crops": measure_crops,
        "memory": measure_memory,
        "shares": measure_shares,
    }
    return measurements[name](Path(records_dir), argument)


def convert(vistas_dir: Path, records_dir: Path, workers: int, *options: str) -> float:
    """Converts a Vistas folder to records; returns the duration in seconds."""
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "data_prep.build_records", f"--vistas_dir={vistas_dir}"),
            *(f"--records_dir={records_dir}", f"--workers={workers}", *options),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def open_split(records_dir: Path) -> tuple[Any, Any, Any]:
    """Returns the index, the label set and the default configuration of the training split."""
    from mapseg.config import TrainConfig
    from mapseg.data.manifest import read_manifest
    from mapseg.data.shards import index_split
    from mapseg.labels import make_label_set

    manifest = read_manifest(records_dir)
    labels = make_label_set(manifest.classes, "all")
    return index_split(manifest, "training"), labels, TrainConfig()


def make_ways() -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Returns the functions that decode a window of the image and of the label, by method."""
    from mapseg.data.windows import decode_image_window, decode_label_window

    def whole_label(sample: Any, window: Any) -> Any:
        return window.cut(sample.whole_label)

    return {
        "naive": (lambda sample, window, _: window.cut(sample.whole_image), whole_label),
        "partial": (lambda sample, window, _: decode_image_window(sample, window), whole_label),
        "mapseg": (decode_image_window, decode_label_window),
    }


class Maker:
    """Makes crops by `crops.make_crop` with replaced decoders, and times the stages."""

    def __init__(self, records_dir: Path):
        self.index, self.labels, self.config = open_split(records_dir)
        self.ways = make_ways()
        self.reset()

    def reset(self) -> None:
        """Clears all times."""
        self.secs: dict[str, Any] = {way: defaultdict(float) for way in self.ways}

    def make(self, way: str, i: int) -> Any:
        """Makes crop `i`."""
        import numpy as np

        from mapseg.data import crops
        from mapseg.data.samples import parse_sample
        from mapseg.data.shards import read_record

        def timed(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                started = time.perf_counter()
                result = work(*arguments)
                self.secs[way][stage] += time.perf_counter() - started
                return result

            return call

        image, label = self.ways[way]
        decoders = {
            "decode_image_window": timed("image", image),
            "decode_label_window": timed("label", label),
        }
        vars(crops).update(decoders)
        record = timed("read", read_record)(self.index, i % len(self.index))
        sample = timed("parse", parse_sample)(record)
        make_crop = timed("all", crops.make_crop)
        return make_crop(sample, self.labels.table, self.config, np.random.default_rng(i % 2**32))

    def stages_ms(self, way: str, crops: int) -> dict[str, float]:
        """Returns the time of each stage per crop."""
        secs = dict(self.secs[way])
        secs["augment"] = secs.pop("all") - secs["image"] - secs["label"]
        return {stage: 1e3 * secs[stage] / crops for stage in STAGES}


def measure_crops(records_dir: Path, crops: int) -> dict[str, Any]:
    """Times the three methods alternately on one core, and checks that their crops are equal."""
    import numpy as np
    import tensorflow as tf

    from mapseg.data.batches import train_batches
    from mapseg.data.transforms import random_scale, shrink_of

    batches = iter(train_batches(records_dir, open_split(records_dir)[2]))
    next(batches)
    started = time.perf_counter()
    for _ in range(BATCHES):
        batch, _ = next(batches)
    stream = BATCHES * len(batch) / (time.perf_counter() - started)
    del batches
    maker = Maker(records_dir)
    for i in range(-len(maker.index), crops):  # the first round warms up
        if i == 0:
            maker.reset()
        by_way = {way: maker.make(way, i) for way in maker.ways}  # (image, label)
        shrink = shrink_of(random_scale(maker.config, np.random.default_rng(i % 2**32)))
        for way in ("partial", "mapseg"):
            np.testing.assert_array_equal(by_way[way][1], by_way["naive"][1])
            if shrink == 1:
                np.testing.assert_array_equal(by_way[way][0], by_way["naive"][0])
    stages = {way: maker.stages_ms(way, crops) for way in maker.ways}
    return {
        "crops_per_s": {way: 1e3 / sum(ms.values()) for way, ms in stages.items()},
        "stages_ms": stages,
        "stream_per_s": stream,
        "tf_image_ms": time_tf_image(tf, maker.config),
    }


def time_tf_image(tf: Any, config: Any, count: int = 30) -> float:
    """Returns the milliseconds of the same augmentation by `tf.image`, in a graph."""

    def augment(image: Any, label: Any, seed: Any) -> Any:
        image = tf.image.resize(image, config.crop_size, antialias=True)
        label = tf.image.resize(label, config.crop_size, method="nearest")
        image = tf.image.stateless_random_flip_left_right(image, seed)
        label = tf.image.stateless_random_flip_left_right(label, seed)
        image = tf.image.stateless_random_brightness(image / 255, config.color_jitter, seed)
        limits = 1 - config.color_jitter, 1 + config.color_jitter
        image = tf.image.stateless_random_contrast(image, *limits, seed)
        image = tf.image.stateless_random_saturation(image, *limits, seed)
        return tf.saturate_cast(tf.round(image * 255), tf.uint8), label

    graph = tf.function(augment)
    pixels = tf.random.stateless_uniform([684, 684, 4], [0, 0], 0, 256, tf.int32)
    image, label = tf.cast(pixels[..., :3], tf.uint8), tf.cast(pixels[..., 3:], tf.uint8)
    graph(image, label, tf.constant([0, 0]))
    started = time.perf_counter()
    for i in range(count):
        graph(image, label, tf.constant([0, i]))
    return 1e3 * (time.perf_counter() - started) / count


def measure_memory(records_dir: Path, way: str) -> dict[str, float]:
    """Measures the growth of the process: ten crops by a method, or batches on all cores."""
    from mapseg.data.batches import train_batches

    maker = Maker(records_dir)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "stream":
        batches = iter(train_batches(records_dir, maker.config))
        for _ in range(BATCHES):
            next(batches)
    else:
        for i in range(10):
            maker.make(way, i)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_mb": (after - before) * 1024 / 1e6}


def measure_shares(records_dir: Path, crops: int) -> dict[str, Any]:
    """Returns the fraction of crops with more than a few pixels of each rare class."""
    import dataclasses
    import itertools

    from mapseg.data.batches import train_batches

    _, labels, config = open_split(records_dir)
    shares: dict[str, Any] = {}
    for balance in (0.0, 0.5):
        balanced = dataclasses.replace(
            config, class_balance=balance, batch_size=20, color_jitter=0.0
        )
        batches = itertools.islice(train_batches(records_dir, balanced), crops // 20)
        ids = [label for _, label in batches for label in label.numpy()]
        shares[str(balance)] = {
            name: sum((label == labels.names.index(name)).sum() > SEEN_PX for label in ids)
            / len(ids)
            for name in RARE
        }
    return shares


def copy_source(vistas_dir: Path, folder: Path, copies: int) -> Path:
    """Makes a Vistas folder with several copies of the training pairs, as symbolic links."""
    for kind in ("images", "labels"):
        (folder / "training" / kind).mkdir(parents=True)
        for path in sorted((vistas_dir / "training" / kind).iterdir()):
            for copy in range(copies):
                (folder / "training" / kind / f"{copy}_{path.name}").symlink_to(path)
    for path in vistas_dir.glob("config*.json"):
        (folder / path.name).symlink_to(path)
    return folder


def time_conversion(vistas_dir: Path, folder: Path) -> dict[str, Any]:
    """Times the conversion with one and two workers, alternately."""
    pairs = len(list((vistas_dir / "training/images").iterdir()))
    source_bytes = sum(path.stat().st_size for path in vistas_dir.glob("training/*/*"))
    secs: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2):
        for workers in secs:
            records_dir = folder / f"converted-{workers}-{turn}"
            secs[workers].append(convert(vistas_dir, records_dir, workers))
    stored = sum(path.stat().st_size for path in records_dir.glob("*.tfrecord"))
    return {
        "pairs": pairs,
        "pairs_per_s": {str(workers): pairs / min(times) for workers, times in secs.items()},
        "bytes_of_source": stored / source_bytes,
    }


def print_crops(figures: dict[str, Any]) -> None:
    """Prints speed, stages and memory by size and method."""
    sizes = figures["crops"]
    print("| crops/s on one core |", " | ".join(sizes), "| raw against 2 MP, and q95 |")
    print("| --- " * (len(sizes) + 2) + "|")
    for way, title in WAYS.items():
        rates = [size["crops_per_s"][way] for size in sizes.values()]
        raw = sizes["raw"]["crops_per_s"][way]
        costs = [sizes[name]["crops_per_s"][way] / raw for name in ("2 MP", "2 MP, q95")]
        cost_text = " and ".join(f"{cost:.2f}" for cost in costs)
        print(f"| {title} |", " | ".join(f"{r:.1f}" for r in rates), f"| {cost_text} x the cost |")
    gains = [f["crops_per_s"]["mapseg"] / f["crops_per_s"]["naive"] for f in sizes.values()]
    print("| mapseg against decode all |", " | ".join(f"{g:.1f} x" for g in gains), "| |")
    streams = [size["stream_per_s"] for size in sizes.values()]
    print("| mapseg through tf.data |", " | ".join(f"{s:.1f}" for s in streams), "| |")
    print("\n| ms a crop, raw |", " | ".join(STAGES), "| slowest |")
    print("| --- " * 7 + "|")
    for way, title in WAYS.items():
        stages = sizes["raw"]["stages_ms"][way]
        slowest = max(stages, key=stages.__getitem__)
        print(f"| {title} |", " | ".join(f"{stages[s]:.1f}" for s in STAGES), f"| {slowest} |")
    print(f"\nthe augmentation by tf.image: {sizes['raw']['tf_image_ms']:.1f} ms a crop\n")
    print("| memory, MB |", " | ".join(sizes), "|\n" + "| --- " * (len(sizes) + 1) + "|")
    for way in (*WAYS, "stream"):
        title = WAYS.get(way, "mapseg, batches on all cores")
        print(
            f"| {title} |", " | ".join(f"{m[way]:.0f}" for m in figures["memory_mb"].values()), "|"
        )


def print_conversion(figures: dict[str, Any]) -> None:
    """Prints the speed of the conversion."""
    one, two = figures["pairs_per_s"]["1"], figures["pairs_per_s"]["2"]
    print(
        f"\nconversion of {figures['pairs']} pairs: {one:.2f} pairs/s with one worker, {two:.2f} "
        f"with two ({two / one:.2f} x); shards take {figures['bytes_of_source']:.3f} x the source"
    )


def print_shares(shares: dict[str, Any]) -> None:
    """Prints how often rare classes occur in crops."""
    print(f"\n| share of crops with over {SEEN_PX} pixels |", " | ".join(RARE), "|")
    print("| --- " * (len(RARE) + 1) + "|")
    for balance, of_classes in shares.items():
        cells = [f"{share:.0%}" for share in of_classes.values()]
        print(f"| class_balance {balance} |", " | ".join(cells), "|")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_benchmark(work, define_flags(), argv, __doc__, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
