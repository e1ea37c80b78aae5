"""Plans a conversion: which shards to make, which are finished, whether the disk has space."""

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.convert import Job, Resize
from data_prep.parts import PARTS_DIR, Part, part_path, read_part
from data_prep.sources import Source, SourceSplit
from mapseg.data.manifest import FORMAT_VERSION, Split, shard_name
from mapseg.data.pairing import Pair
from mapseg.files import file_sha256, name_text, nearest_folder
from mapseg.progress import amount

_SHARD_BYTES = 256 << 20
_MIN_SHARDS = 16  # so that a small dataset keeps that many cores busy

# Measured on Vistas and CamVid: label and tiles take 2.3 to 2.7 times the label file's bytes. A
# resized sample takes 0.42 (2048 pixels on the long side) to 0.62 bytes (512) per pixel.
_LABEL_TIMES, _RESIZED_PIXEL_BYTES = 2.7, 0.6
_SAMPLED_PAIRS = 32
_SPARE_BYTES = 64 << 20


def plan_shards(
    split: SourceSplit,
    source: Source,
    resize: Resize,
    records_dir: Path,
    skip: bool,
    progress: Callable[[str], None],
) -> list[Job]:
    """Divides a split into shards; the division depends only on the files.

    Files whose modification times have changed since an earlier conversion, as those of a copy, are
    read and compared by content.
    """
    inputs = {pair.key: _identify(pair, split) for pair in split.pairs}
    groups = partition([image[1] + label[1] for image, label in inputs.values()])
    jobs = []
    for number, places in enumerate(groups):
        pairs = tuple(split.pairs[i] for i in places)
        path = records_dir / shard_name(split.name, number, len(groups))
        made_from = {
            "format_version": FORMAT_VERSION,
            "max_side": resize.max_side,
            "resize_to": resize.resize_to and list(resize.resize_to),
            "classes": [c.to_json() for c in source.classes],
            "inputs": _as_before(pairs, inputs, read_part(path), progress),
        }
        jobs.append(Job(path, split.name, pairs, resize, source.classes, made_from, skip))
    return jobs


def _identify(pair: Pair, split: SourceSplit) -> list[list[Any]]:
    """Returns [name, bytes, modification time] of the image and of the label."""
    files = ((pair.image_path, split.image_dir), (pair.label_path, split.label_dir))
    stats = [(name_text(path.relative_to(folder)), path.stat()) for path, folder in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _as_before(
    pairs: Sequence[Pair],
    inputs: Mapping[str, list[list[Any]]],
    part: Part | None,
    progress: Callable[[str], None],
) -> dict[str, list[list[Any]]]:
    """Returns the inputs of a shard, with the earlier times of files whose content is the same."""
    now = {pair.key: inputs[pair.key] for pair in pairs}
    then = part.made_from.get("inputs", {}) if part else {}
    known = {facts.key: facts.files_sha256 for facts in part.facts} if part else {}
    newer = [pair for pair in pairs if _only_times_differ(now[pair.key], then.get(pair.key))]
    if newer and part:
        progress(f"{part.shard.file}: comparing {len(newer)} pairs that have new times by content")
    for pair in newer:
        files = (pair.image_path, pair.label_path)
        if known.get(pair.key) == tuple(file_sha256(path) for path in files):
            now[pair.key] = then[pair.key]
    return now


def _only_times_differ(now: list[list[Any]], then: list[list[Any]] | None) -> bool:
    return then is not None and now != then and [f[:2] for f in now] == [f[:2] for f in then]


def partition(sizes: Sequence[int]) -> list[list[int]]:
    """Partitions a sequence of samples into non-empty runs of about equal size in bytes.

    Args:
      sizes: bytes of each sample.

    Returns:
      The indices in `sizes` of each shard's samples. A shard has about 256 MB, or less so as to
      make 16 shards if there are that many samples.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    total = max(int(ends[-1]), 1)
    count = min(len(sizes), max(_MIN_SHARDS, math.ceil(total / _SHARD_BYTES)))
    # A sample belongs to the shard that contains the middle of its bytes.
    shards = (2 * ends - np.array(sizes)) * count // (2 * total)
    return [list(g) for _, g in itertools.groupby(range(len(sizes)), key=lambda i: shards[i])]


def finished_part(job: Job) -> Part | None:
    """Returns the part of a finished shard; None if the shard must still be made.

    A shard that left out pairs is finished only for a job that skips such pairs.
    """
    part = read_part(job.path)
    if part is None or part.made_from != job.made_from or (part.left_out and not job.skip):
        return None
    intact = job.path.is_file() and job.path.stat().st_size == part.shard.bytes
    return part if intact else None


def check_made_from(records_dir: Path, split: Split, jobs: Sequence[Job]) -> None:
    """Rejects a finished split that was made from other files or options.

    A shard whose part is missing will be made again; only its number of samples is compared. Pairs
    that were left out are not compared: their files may have been repaired.

    Raises:
      ValueError: the message names the difference.
    """
    difference = _difference(records_dir, split, jobs)
    if difference:
        raise ValueError(
            f"{records_dir}: split {split.name} is finished, and {difference}. "
            f"Remedy: choose another --records_dir, or remove {records_dir}"
        )


def _difference(records_dir: Path, split: Split, jobs: Sequence[Job]) -> str:
    """Describes how a finished split differs from what jobs would make; empty if it does not."""
    if split.indexed:
        return "it was not converted but indexed, from shards written by another tool"
    for field in ("max_side", "resize_to"):
        old_value, new_value = split.options[field], jobs[0].made_from[field]
        if old_value != new_value:
            return f"its {field} was {old_value}; got {new_value}"
    parts = {shard.file: read_part(records_dir / shard.file) for shard in split.shards}
    old = {file: part.made_from for file, part in parts.items() if part}
    unknown = parts.keys() - old.keys()
    samples = {shard.file: shard.samples for shard in split.shards if shard.file in unknown}
    for job in jobs:  # without notes, as if copied without hidden folders
        count = sum(pair.key not in split.left_out for pair in job.pairs)
        if count != samples.get(job.path.name, count):
            return (
                f"its source has changed since: {job.path.name} had {samples[job.path.name]} "
                f"samples; got {count} pairs"
            )
    new = {job.path.name: job.made_from for job in jobs if job.path.name not in unknown}
    then, now = (
        {k: v for m in made.values() for k, v in m["inputs"].items()} for made in (old, new)
    )
    keys = sorted(
        k for k in (then.keys() | now.keys()) - split.left_out.keys() if then.get(k) != now.get(k)
    )
    if old == new or (split.left_out and not keys):
        return ""
    change = f"{len(keys)} pairs differ, the first is {keys[0]}" if keys else "its shards differ"
    return f"its source has changed since: {change}"


def remove_shards(records_dir: Path, split: str, finished: Sequence[Job]) -> None:
    """Removes all shards and parts of a split except those of finished jobs."""
    finished_paths = {path for job in finished for path in (job.path, part_path(job.path))}
    for folder in (records_dir, records_dir / PARTS_DIR):
        for path in set(folder.glob(f"{split}-?????-of-?????.tfrecord*")) - finished_paths:
            path.unlink()


def check_space(records_dir: Path, jobs: Sequence[Job]) -> str:
    """Compares the space that shards will take with the free space on the disk.

    Args:
      records_dir: the folder for the shards; it need not exist.
      jobs: the shards, one or more.

    Returns:
      A line that reports both.

    Raises:
      OSError: the disk has too little space.
    """
    needed = estimate_bytes(jobs)
    free = shutil.disk_usage(nearest_folder(records_dir)).free
    if free < needed + _SPARE_BYTES:
        raise OSError(
            f"{records_dir}: about {amount(needed + _SPARE_BYTES)} must be free on its disk; got "
            f"{amount(free)}. Remedy: free some, or choose another --records_dir"
        )
    return f"to write: about {amount(needed)} in {len(jobs)} shards; {amount(free)} are free"


def estimate_bytes(jobs: Sequence[Job]) -> int:
    """Estimates the bytes of shards from file sizes or, if resized, from a few image headers.

    Args:
      jobs: the shards, one or more.
    """
    sizes = [size for job in jobs for size in job.made_from["inputs"].values()]
    stored = [image[1] + _LABEL_TIMES * label[1] for image, label in sizes]
    if jobs[0].resize == Resize():
        return round(sum(stored))
    pairs = [pair for job in jobs for pair in job.pairs]
    places = np.linspace(0, len(pairs) - 1, min(len(pairs), _SAMPLED_PAIRS)).astype(int)
    estimates = [_resized_bytes(pairs[i], jobs[0].resize, stored[i]) for i in places]
    return round(len(pairs) * sum(estimates) / len(estimates))


def _resized_bytes(pair: Pair, resize: Resize, stored: float) -> float:
    try:
        with Image.open(pair.image_path) as image:
            size = image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return stored  # the conversion will report the error
    target = resize.target(size)
    return stored if target == size else _RESIZED_PIXEL_BYTES * target[0] * target[1]
