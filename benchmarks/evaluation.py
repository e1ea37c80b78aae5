"""Times the counting of scores on large id maps, and measures its memory.

    python benchmarks/evaluation.py [--images=100] [--check]

Writes synthetic id maps of 124 classes in a temporary folder: cells with curved contours, and
predictions that are shifted and wrong in patches. Times each part of the counting at 25 megapixels.
Then counts images of 12 megapixels, and fits the growth of resident memory over the last half of
them. Each measurement has its own process. With --check, the exit code is 1 if the peak of the
25-megapixel image is above 3 GiB, or the growth above 1 MB an image.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import flags
from PIL import Image
from programs import run_benchmark, run_child

from mapseg.data.label_files import read_ids
from mapseg.data.pairing import Pair
from mapseg.evaluation.boundaries import boundary_counts
from mapseg.evaluation.counting import count_image
from mapseg.evaluation.predictions import count_pair, find_predictions, score_pairs, source_ids
from mapseg.evaluation.regions import region_counts
from mapseg.evaluation.scores import confusion_matrix
from mapseg.labels import LabelClass, make_label_set
from mapseg.machine import process_bytes

CLASSES = tuple(LabelClass(i, f"class {i}", (i, i, i)) for i in range(124))
LABEL_SET = make_label_set(CLASSES, "all")
SIZES = {25: (4330, 5774), 12: (3000, 4000)}  # (height, width) by megapixels
_CELL_PX = 90
_DISTINCT = 4  # pairs; further names are links to them
_ROUNDS = 3
_PEAK_GIB, _GROWTH_MB = 3.0, 1.0


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_integer("images", 100, "images of 12 megapixels", 10, flag_values=values)
    flags.DEFINE_bool("check", False, "exit with 1 if a limit is exceeded", flag_values=values)
    return values


def make_maps(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes a label and a prediction of a size: [H, W] uint8 ids."""
    rng = np.random.default_rng(seed)
    rows, columns = (side // _CELL_PX + 3 for side in size)
    cells = (124 * rng.random((rows, columns)) ** 2).astype(np.uint8)  # some classes are frequent
    noise = [cv2.resize(rng.random((size[0] // 30, size[1] // 30), np.float32), size[::-1])] * 2
    y, x = (
        ((np.indices(size, np.float32)[axis]) / _CELL_PX + 1.5 * noise[axis]).astype(np.float32)
        for axis in (0, 1)
    )
    label = cv2.remap(cells, x, y, cv2.INTER_NEAREST)
    patches = cv2.resize(
        (rng.random((size[0] // 50, size[1] // 50)) < 0.1).astype(np.uint8),
        size[::-1],
        interpolation=cv2.INTER_NEAREST,
    )
    shifted = np.roll(label, (4, 7), (0, 1))
    return label, np.where(patches > 0, np.roll(label, size[0] // 3, 0), shifted)


def write_maps(folder: Path, size: tuple[int, int], images: int) -> None:
    """Writes pairs as `labels/` and `predictions/` in a folder."""
    for i in range(min(images, _DISTINCT)):
        for name, ids in zip(("labels", "predictions"), make_maps(size, i), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(folder / name / f"{i:04}.png", compress_level=1)
            for other in range(i + _DISTINCT, images, _DISTINCT):
                (folder / name / f"{other:04}.png").symlink_to(f"{i:04}.png")


def median_secs(call: Callable[[], Any]) -> float:
    """Times a call: the median of a few rounds."""
    secs = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        call()
        secs.append(time.perf_counter() - started)
    return float(np.median(secs))


def measure_parts(pairs: Sequence[Pair]) -> dict[str, float]:
    """Times the parts of counting the first image, in seconds, and the peak of resident memory."""
    pair = pairs[0]
    label, prediction = (
        read_ids(path, "map", "").ids.copy() for path in (pair.label_path, pair.image_path)
    )
    classes = range(len(CLASSES))
    return {
        "reading and checking a PNG": median_secs(lambda: read_ids(pair.label_path, "label", "")),
        "confusion matrix": median_secs(lambda: confusion_matrix(label, prediction, 124)),
        "boundaries": median_secs(lambda: boundary_counts(label, prediction, classes)),
        "regions": median_secs(lambda: region_counts(label, prediction, classes)),
        "all counts": median_secs(
            lambda: count_image("x", label, prediction, LABEL_SET, details=True)
        ),
        "peak": float(process_bytes("peak")),
    }


def measure_growth(pairs: Sequence[Pair]) -> dict[str, float]:
    """Counts pairs one by one, and fits the growth of resident memory over the last half."""
    kept, resident = [], []
    predicted = source_ids(CLASSES, LABEL_SET)
    for pair in pairs:
        kept.append(count_pair(pair, CLASSES, LABEL_SET, predicted, False))
        resident.append(process_bytes("current"))
    half = resident[len(resident) // 2 :]
    return {"growth": float(np.polyfit(np.arange(len(half)), half, 1)[0]), "last": resident[-1]}


def measure_pool(pairs: Sequence[Pair]) -> dict[str, float]:
    """Scores pairs as the command does: seconds for each, and the peak of resident memory."""
    started = time.perf_counter()
    score_pairs(pairs, CLASSES, LABEL_SET, source_ids(CLASSES, LABEL_SET), lambda _: None)
    secs = (time.perf_counter() - started) / len(pairs)
    return {"secs": secs, "peak": float(process_bytes("peak"))}


def run_case(name: str, folder: Path, images: int) -> dict[str, float]:
    """Runs a measurement in a process of its own."""
    figures: dict[str, float] = run_child(__file__, [name, str(folder), images])
    return figures


def measure(case: Sequence[Any]) -> dict[str, float]:
    """Runs the measurement that `run_case` names, on the first pairs of the folder."""
    name, folder, images = case
    pairs, _ = find_predictions(Path(folder, "predictions"), Path(folder, "labels"))
    measurements = {"parts": measure_parts, "growth": measure_growth, "pool": measure_pool}
    return measurements[name](pairs[:images])


def work(values: flags.FlagValues) -> int:
    """Prints the tables."""
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(name, "25"), Path(name, "12")
        write_maps(large, SIZES[25], 1)
        write_maps(small, SIZES[12], values.images)
        parts = run_case("parts", large, 1)
        peak = parts.pop("peak")
        print("| part, 25 megapixels, 124 classes | time |\n| --- | --- |")
        for part, secs in parts.items():
            print(f"| {part} | {secs:.2f} s |")
        print(f"\npeak of resident memory: {peak / 2**30:.2f} GiB\n", flush=True)
        print("| images of 12 megapixels | growth per image | time per image | peak |")
        print("| --- | --- | --- | --- |")
        growth = 0.0
        for images in (10, values.images):
            grown, pool = (run_case(case, small, images) for case in ("growth", "pool"))
            growth = grown["growth"] / 1e6
            print(
                f"| {images} | {growth:.2f} MB | {pool['secs']:.2f} s | "
                f"{pool['peak'] / 2**30:.2f} GiB |",
                flush=True,
            )
    return int(values.check and (peak > _PEAK_GIB * 2**30 or growth > _GROWTH_MB))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_benchmark(work, define_flags(), argv, __doc__, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
