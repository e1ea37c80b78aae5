"""Checks a records folder, byte by byte and pixel by pixel.

python -m data_prep.verify_records --records_dir=R
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from absl import flags

from data_prep.audit import AUDIT_NAME
from data_prep.facts import SampleFacts, make_tile_table
from data_prep.inspection import inspect_record
from data_prep.parts import part_path
from mapseg import cli
from mapseg.data.manifest import (
    MANIFEST_NAME,
    NOTES_REMEDY,
    Manifest,
    Split,
    read_manifest,
)
from mapseg.data.shard_checks import Shard, check_shard
from mapseg.data.shards import read_shard
from mapseg.data.tiles import read_tile_table
from mapseg.machine import cores
from mapseg.progress import make_reporter, show
from mapseg.stored_json import read_checked_json

_TOP_CLASSES = 3


@dataclass
class _Inspection:
    """The facts of the samples in a shard or split, and the problems."""

    problems: list[str] = field(default_factory=list)
    facts: list[SampleFacts] = field(default_factory=list)


def verify_records(manifest: Manifest, progress: Callable[[str], None]) -> list[str]:
    """Checks every file and every sample of a records folder.

    It checks the checksums of the manifest, audit, parts, tile tables, shards and records; that
    the manifest and tables agree with the samples (counts, sizes, pixels by class, ids in each
    tile); that ids are in the class table; that images, labels and label tiles are decodable and
    consistent; that no key occurs twice in a split, and no image in two splits.

    Args:
      manifest: the manifest of the folder, which may lack shards.
      progress: receives lines to show.

    Returns:
      The problems, one line each, naming the file; empty if there are none.
    """
    problems = list(_check_notes(manifest))
    total = sum(split.samples for split in manifest.splits.values())
    report = make_reporter(0, total, "samples", progress)
    done = 0
    owners: dict[str, tuple[str, str]] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for name, split in manifest.splits.items():

            def check(shard: Shard) -> _Inspection:
                return _check_shard(shard, manifest)

            inspection = _Inspection()
            for shard_inspection in pool.map(check, split.shards):
                inspection.problems += shard_inspection.problems
                inspection.facts += shard_inspection.facts
                report(done + len(inspection.facts))
            done += len(inspection.facts)
            problems += _check_split(split, inspection, manifest)
            problems += _check_unique(manifest.records_dir, name, inspection.facts, owners)
    return problems


def _check_notes(manifest: Manifest) -> Iterator[str]:
    """Yields damaged files that training does not need; such files may be missing."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    folder = manifest.records_dir
    for path in [folder / AUDIT_NAME, *(part_path(folder / shard.file) for shard in shards)]:
        if path.is_file() and read_checked_json(path) is None:
            yield f"{path}: must be as it was written; its checksum differs. {NOTES_REMEDY}"


def _check_shard(shard: Shard, manifest: Manifest) -> _Inspection:
    facts: list[SampleFacts] = []
    problems: list[str] = []
    path = manifest.records_dir / shard.file
    try:
        check_shard(path, shard)
    except (OSError, ValueError) as error:
        return _Inspection([str(error)])
    ids = {c.id for c in manifest.classes}
    try:
        for number, record in enumerate(read_shard(path)):
            try:
                facts.append(inspect_record(record, ids))
            except ValueError as error:
                problems.append(f"{path}: record {number}: {error}")
    except ValueError as error:
        problems.append(str(error))
    if not problems and len(facts) != shard.samples:
        problems.append(f"{path}: must have {shard.samples} samples; got {len(facts)}")
    return _Inspection(problems, facts)


def _check_split(split: Split, inspection: _Inspection, manifest: Manifest) -> Iterator[str]:
    """Yields the problems of a split's shards and table, and where its samples contradict them."""
    yield from inspection.problems
    table, table_path = None, manifest.records_dir / split.tile_table
    try:
        table = read_tile_table(table_path, split.tile_table_sha256, NOTES_REMEDY)
    except (OSError, ValueError) as error:
        yield str(error)
    if inspection.problems:
        return  # not all samples are known
    path = manifest.records_dir / MANIFEST_NAME
    sizes = Counter(sample.size for sample in inspection.facts)
    if dict(sizes) != split.sizes:
        yield f"{path}: sizes of {split.name} must be {dict(sizes)}; got {split.sizes}"
    pixels = Counter[int]()
    for sample in inspection.facts:
        pixels.update(sample.pixels)
    if {c.name: pixels[c.id] for c in manifest.classes} != split.pixels:
        yield f"{path}: pixels of {split.name} must be those of its labels; got other counts"
    expected = make_tile_table(inspection.facts, manifest.classes)
    if table is not None and not (
        np.array_equal(table.sizes, expected.sizes) and np.array_equal(table.held, expected.held)
    ):
        yield f"{table_path}: must list the ids in the labels; got other ids"


def _check_unique(
    records_dir: Path,
    split: str,
    facts: Sequence[SampleFacts],
    owners: dict[str, tuple[str, str]],
) -> Iterator[str]:
    """Yields repeated keys, and images also in earlier splits; adds its images to `owners`."""
    for key, count in Counter(sample.key for sample in facts).items():
        if count > 1:
            yield f"{records_dir}: a key must be unique in a split; {split} has {count} of {key}"
    for sample in facts:
        owner, key = owners.setdefault(sample.image_sha256, (split, sample.key))
        if owner != split:
            yield (
                f"{records_dir}: an image must be in one split; {key} in {owner} and {sample.key} "
                f"in {split} are equal, byte for byte"
            )


def _table(manifest: Manifest) -> Iterator[str]:
    yield f"{'split':<12} {'samples':>8} {'shards':>7} {'MB':>9}  top classes"
    for split in manifest.splits.values():
        total = max(1, sum(split.pixels.values()))
        top = sorted(split.pixels.items(), key=lambda item: -item[1])[:_TOP_CLASSES]
        shares = ", ".join(f"{name} {pixels / total:.0%}" for name, pixels in top)
        mb = sum(shard.bytes for shard in split.shards) / 1e6
        yield f"{split.name:<12} {split.samples:>8} {len(split.shards):>7} {mb:>9.1f}  {shares}"


def _work_on(values: flags.FlagValues) -> int:
    manifest = read_manifest(cli.required(values, "records_dir"), check_shards=False)
    problems = verify_records(manifest, show)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        cli.report("\n".join(_table(manifest)))
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("records_dir", "", "the records to check", flag_values=values)
    return cli.run(_work_on, values, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
