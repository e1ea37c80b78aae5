"""Checks a records folder, byte by byte and pixel by pixel.

python -m data_prep.verify_records --records_dir=R
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags

from data_prep.build_records import make_reporter, show
from mapseg import cli
from mapseg.records import (
    MANIFEST_NAME,
    Manifest,
    Shard,
    Split,
    decode_sample,
    read_manifest,
    read_shard,
)

_TOP_CLASSES = 3
_SIZE_FIELDS = dict.fromkeys(("image/height", "image/width"), tf.io.FixedLenFeature([], tf.int64))
_ALL_IDS = np.arange(256, dtype=np.uint8)


@dataclass
class _Found:
    """What a shard holds, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))


def verify_records(records_dir: Path, progress: Callable[[str], None]) -> list[str]:
    """Checks every shard and every sample of a records folder.

    Checksums of shards and records, the counts that the manifest has (samples, sizes, pixels by
    class), ids within the class table, images and labels decodable and of one size, no key twice.

    Args:
      records_dir: the folder.
      progress: gets lines to show.

    Returns:
      What is wrong, a line each, naming the file; empty if all is well.

    Raises:
      FileNotFoundError: there is no manifest, or a shard is missing.
      ValueError: a manifest that cannot be read, or a shard of another size.
    """
    manifest = read_manifest(records_dir)
    report = make_reporter(0, sum(s.samples for s in manifest.splits.values()), progress)
    problems: list[str] = []
    owners: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in manifest.splits.values():

            def check(shard: Shard) -> _Found:
                return _check_shard(records_dir / shard.file, shard, manifest)

            total = _Found()
            for found in pool.map(check, split.shards):
                total.problems += found.problems
                total.keys += found.keys
                total.sizes += found.sizes
                total.pixels += found.pixels
                report(len(owners) + len(total.keys))
            problems += total.problems or _compare(
                records_dir / MANIFEST_NAME, split, total, manifest
            )
            for key in total.keys:
                if key in owners:
                    problems.append(
                        f"{records_dir}: a key must be used once; {key} is in "
                        f"{owners[key]} and in {split.name}"
                    )
                owners[key] = split.name
    return problems


def _check_shard(path: Path, shard: Shard, manifest: Manifest) -> _Found:
    found = _Found()
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            found.problems.append(
                f"{path}: must be as it was written; its sha256 differs. Remedy: remove the file, "
                "and run data_prep.build_records as before: it makes lost shards"
            )
            return found
    try:
        for record in read_shard(path):
            _check_record(record, path, manifest, found)
    except ValueError as error:
        found.problems.append(str(error))
    if not found.problems and len(found.keys) != shard.samples:
        found.problems.append(f"{path}: must have {shard.samples} samples; got {len(found.keys)}")
    return found


def _check_record(record: bytes, path: Path, manifest: Manifest, found: _Found) -> None:
    try:
        image, label, name = (t.numpy() for t in decode_sample(record, _ALL_IDS))
        noted = tf.io.parse_single_example(record, _SIZE_FIELDS)
    except tf.errors.OpError as error:
        found.problems.append(f"{path}: record {len(found.keys)} cannot be decoded: {error}")
        found.keys.append(f"{path.name}, record {len(found.keys)}")
        return
    key = name.decode()
    pixels = np.bincount(label.reshape(-1), minlength=256)
    unknown = sorted(set(np.flatnonzero(pixels).tolist()) - {c.id for c in manifest.classes})
    if unknown:
        found.problems.append(f"{path}: {key}: ids must be in the class table; got {unknown}")
    size = tuple(int(noted[name]) for name in _SIZE_FIELDS)
    if not image.shape[:2] == label.shape == size:
        found.problems.append(
            f"{path}: {key}: sizes must be equal; got image {image.shape[:2]}, label "
            f"{label.shape}, noted {size}"
        )
    found.keys.append(key)
    found.sizes[label.shape] += 1
    found.pixels += pixels


def _compare(path: Path, split: Split, found: _Found, manifest: Manifest) -> Iterator[str]:
    """Yields where the manifest says other things of a split than its samples do."""
    if dict(found.sizes) != split.sizes:
        yield f"{path}: sizes of {split.name} must be {dict(found.sizes)}; got {split.sizes}"
    pixels = {c.name: int(found.pixels[c.id]) for c in manifest.classes}
    if pixels != split.pixels:
        yield f"{path}: pixels of {split.name} must be those of its labels; got others"


def _table(manifest: Manifest) -> Iterator[str]:
    yield f"{'split':<12} {'samples':>8} {'shards':>7} {'MB':>9}  top classes"
    for split in manifest.splits.values():
        total = sum(split.pixels.values())
        top = sorted(split.pixels.items(), key=lambda item: -item[1])[:_TOP_CLASSES]
        shares = ", ".join(f"{name} {pixels / total:.0%}" for name, pixels in top)
        mb = sum(shard.bytes for shard in split.shards) / 1e6
        yield f"{split.name:<12} {split.samples:>8} {len(split.shards):>7} {mb:>9.1f}  {shares}"


def _work_on(values: flags.FlagValues) -> int:
    records_dir = Path(cli.required(values, "records_dir"))
    problems = verify_records(records_dir, show)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(*_table(read_manifest(records_dir)), sep="\n")
    return 1 if problems else 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("records_dir", "", "the records to check", flag_values=values)
    return cli.run(_work_on, values, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
