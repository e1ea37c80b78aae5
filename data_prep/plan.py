"""Which shards a conversion has to make, what stands already, and whether the disk has room."""

import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.convert import Job, Resize
from data_prep.pairing import Pair
from data_prep.parts import PARTS_DIR, Part, part_path, read_part
from data_prep.sources import Source, SourceSplit
from mapseg.data.manifest import FORMAT_VERSION, Split, shard_name
from mapseg.files import name_text, nearest_folder
from mapseg.progress import amount

_SHARD_BYTES = 256 << 20
_MIN_SHARDS = 16  # so that a small data set keeps that many cores busy

# Measured on Vistas and CamVid: label and tiles take 2.3 to 2.7 times the label file's bytes. What
# is resized takes 0.42 (2048 pixels on the long side) to 0.62 bytes (512) for a pixel.
_LABEL_TIMES, _RESIZED_PIXEL_BYTES = 2.7, 0.6
_SAMPLED_PAIRS = 32
_SPARE_BYTES = 64 << 20


def plan_shards(
    split: SourceSplit, source: Source, resize: Resize, records_dir: Path, skip: bool
) -> list[Job]:
    """Cuts a split into shards: a function of the files alone."""
    inputs = {pair.key: _identify(pair, split) for pair in split.pairs}
    groups = partition([image[1] + label[1] for image, label in inputs.values()])
    jobs = []
    for number, places in enumerate(groups):
        pairs = tuple(split.pairs[i] for i in places)
        made_from = {
            "format_version": FORMAT_VERSION,
            "max_side": resize.max_side,
            "resize_to": resize.resize_to and list(resize.resize_to),
            "classes": [c.to_json() for c in source.classes],
            "inputs": {pair.key: inputs[pair.key] for pair in pairs},
        }
        path = records_dir / shard_name(split.name, number, len(groups))
        jobs.append(Job(path, split.name, pairs, resize, source.classes, made_from, skip))
    return jobs


def _identify(pair: Pair, split: SourceSplit) -> list[list[Any]]:
    """[[name, bytes, modification time] of the image, the same of the label]."""
    files = ((pair.image_path, split.image_dir), (pair.label_path, split.label_dir))
    found = [(name_text(path.relative_to(folder)), path.stat()) for path, folder in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def partition(sizes: Sequence[int]) -> list[list[int]]:
    """Cuts a sequence of samples into runs of about equal bytes, none of them empty.

    Args:
      sizes: bytes of each sample.

    Returns:
      The places in `sizes` that make up each shard: about 256 MB, but 16 shards if there are
      samples enough.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    total = max(int(ends[-1]), 1)
    count = min(len(sizes), max(_MIN_SHARDS, math.ceil(total / _SHARD_BYTES)))
    # A sample belongs to the shard in which the middle of its bytes falls.
    shards = (2 * ends - np.array(sizes)) * count // (2 * total)
    return [list(g) for _, g in itertools.groupby(range(len(sizes)), key=lambda i: shards[i])]


def finished_part(job: Job) -> Part | None:
    """Returns what is noted of a finished shard; None where it has still to be made.

    A shard that left pairs out is finished only for a job that does so too.
    """
    part = read_part(job.path)
    if part is None or part.made_from != job.made_from or (part.left_out and not job.skip):
        return None
    whole = job.path.is_file() and job.path.stat().st_size == part.shard.bytes
    return part if whole else None


def check_made_from(records_dir: Path, split: Split, jobs: Sequence[Job]) -> None:
    """Refuses a finished split that was made from other files or options.

    A shard of which nothing is noted any more is not compared; it will be made again. Pairs that
    were left out may have been mended.

    Raises:
      ValueError: it says what differs.
    """
    difference = _difference(records_dir, split, jobs)
    if difference:
        raise ValueError(
            f"{records_dir}: split {split.name} is finished, and {difference}. "
            f"Remedy: another --records_dir, or remove {records_dir}"
        )


def _difference(records_dir: Path, split: Split, jobs: Sequence[Job]) -> str:
    """Says how a finished split differs from what jobs would make; empty if it does not."""
    if split.indexed:
        return "it was not converted but indexed, from shards of another program"
    for field in ("max_side", "resize_to"):
        was, asked = split.options[field], jobs[0].made_from[field]
        if was != asked:
            return f"its {field} was {was}; got {asked}"
    parts = {shard.file: read_part(records_dir / shard.file) for shard in split.shards}
    old = {file: part.made_from for file, part in parts.items() if part}
    unknown = parts.keys() - old.keys()
    new = {job.path.name: job.made_from for job in jobs if job.path.name not in unknown}
    then, now = (
        {k: v for m in made.values() for k, v in m["inputs"].items()} for made in (old, new)
    )
    keys = sorted(
        k for k in (then.keys() | now.keys()) - split.left_out.keys() if then.get(k) != now.get(k)
    )
    if old == new or (split.left_out and not keys):
        return ""
    what = f"{len(keys)} pairs differ, the first is {keys[0]}" if keys else "its shards hold others"
    return f"its source has changed since: {what}"


def discard_others(records_dir: Path, split: str, finished: Sequence[Job]) -> None:
    """Removes what conversions from other files or options left of a split beside finished jobs."""
    kept = {path for job in finished for path in (job.path, part_path(job.path))}
    for folder in (records_dir, records_dir / PARTS_DIR):
        for path in set(folder.glob(f"{split}-?????-of-?????.tfrecord*")) - kept:
            path.unlink()


def check_space(records_dir: Path, jobs: Sequence[Job]) -> str:
    """Compares what shards will take with what the disk has free.

    Args:
      records_dir: where they go; it need not exist.
      jobs: the shards, one or more.

    Returns:
      A line that gives both.

    Raises:
      OSError: the disk has too little.
    """
    needed = estimate_bytes(jobs)
    free = shutil.disk_usage(nearest_folder(records_dir)).free
    if free < needed + _SPARE_BYTES:
        raise OSError(
            f"{records_dir}: about {amount(needed + _SPARE_BYTES)} must be free on its disk; got "
            f"{amount(free)}. Remedy: free some, or another --records_dir"
        )
    return f"to write: about {amount(needed)} in {len(jobs)} shards; {amount(free)} are free"


def estimate_bytes(jobs: Sequence[Job]) -> int:
    """Guesses the bytes of shards from the sizes of files; if resized, from a few images' headers.

    Args:
      jobs: the shards, one or more.
    """
    sizes = [size for job in jobs for size in job.made_from["inputs"].values()]
    stored = [image[1] + _LABEL_TIMES * label[1] for image, label in sizes]
    if jobs[0].resize == Resize():
        return round(sum(stored))
    pairs = [pair for job in jobs for pair in job.pairs]
    places = np.linspace(0, len(pairs) - 1, min(len(pairs), _SAMPLED_PAIRS)).astype(int)
    guesses = [_resized_bytes(pairs[i], jobs[0].resize, stored[i]) for i in places]
    return round(len(pairs) * sum(guesses) / len(guesses))


def _resized_bytes(pair: Pair, resize: Resize, stored: float) -> float:
    try:
        with Image.open(pair.image_path) as image:
            size = image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return stored  # the conversion will say what is wrong with it
    target = resize.target(size)
    return stored if target == size else _RESIZED_PIXEL_BYTES * target[0] * target[1]
