"""Makes shards in TF DeepLab's format usable in place.

python -m data_prep.index_records --records_dir=R --classes=FILE.json

R must contain all shards of a split, SPLIT-00000-of-00010.tfrecord, with or without that suffix.
Every record is decoded and checked. A manifest, tables of the ids in the labels, and an audit are
written next to the shards, which are not changed. After an interruption the same command resumes.
"""

import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags

import mapseg
from data_prep.audit import audit_lines, write_audit
from data_prep.facts import SampleFacts, join_facts
from data_prep.inspection import inspect_record
from data_prep.parts import PARTS_DIR, Part, read_part, write_part
from mapseg import cli
from mapseg.data.manifest import MANIFEST_NAME, Manifest, Split, write_manifest
from mapseg.data.shard_checks import SHARD_REMEDY, Shard, refuse_compressed
from mapseg.data.shards import read_shard
from mapseg.files import file_sha256, locked, write_bytes
from mapseg.labels import LabelClass, read_class_table
from mapseg.machine import cores
from mapseg.progress import duration, make_reporter, show

_NAME = re.compile(r"(\w[\w.-]*)-(\d{5})-of-(\d{5})(\.tfrecord)?")


def index_records(
    records_dir: Path, classes: Sequence[LabelClass], progress: Callable[[str], None]
) -> Manifest:
    """Writes the manifest, tables and audit for shards that another tool wrote.

    Args:
      records_dir: contains the shards of one or more splits, and no manifest.
      classes: the class table of their labels. Pixels of VOID, which TF DeepLab ignores, need no
        class.
      progress: receives lines to show.

    Returns:
      The manifest, as written.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: a manifest already exists, a shard is missing or not TF DeepLab's, or an id is
        not in the table. The message names the file.
    """
    if (records_dir / MANIFEST_NAME).is_file():
        raise ValueError(
            f"{records_dir}: must contain shards without a {MANIFEST_NAME}; got a folder that is "
            f"already indexed or converted. Remedy: to index it again, remove {MANIFEST_NAME}"
        )
    sets = find_shards(records_dir)
    refusal = f"{records_dir}: another program is writing here. Remedy: wait for it to finish"
    with locked(records_dir / PARTS_DIR / "lock", refusal):
        parts = _index_shards(
            [path for paths in sets.values() for path in paths], classes, progress
        )
        splits = {}
        for name, paths in sets.items():
            split, table = _join(name, [parts[path] for path in paths], classes)
            write_bytes(records_dir / split.tile_table, table)
            splits[name] = split
        manifest = Manifest(records_dir, mapseg.__version__, tuple(classes), splits, skipped={})
        write_manifest(manifest)
        write_audit(manifest, progress)
    return manifest


def find_shards(records_dir: Path) -> dict[str, list[Path]]:
    """Finds the shards in a folder.

    Returns:
      The shards of each split, in order.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: there are no shards, one is missing or misnamed, or a split has two sets.
    """
    if not records_dir.is_dir():
        raise FileNotFoundError(f"{records_dir}: no such folder")
    sets: dict[str, list[tuple[int, int, Path]]] = defaultdict(list)
    for path in sorted(records_dir.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match:
            sets[match[1]].append((int(match[3]), int(match[2]), path))
        elif ".tfrecord" in path.suffixes and not path.name.startswith("."):
            with path.open("rb") as file:
                refuse_compressed(file.read(2), path)
            raise ValueError(
                f"{path}: shards must be named SPLIT-00000-of-00010.tfrecord; got {path.name}"
            )
    if not sets:
        raise ValueError(
            f"{records_dir}: must contain shards named SPLIT-00000-of-00010.tfrecord, or without "
            "the suffix; got none"
        )
    for split, shards in sets.items():
        count = shards[0][0]
        numbers = Counter(number for _, number, _ in shards)
        if {total for total, _, _ in shards} != {count} or max(numbers.values()) > 1:
            names = f"{shards[0][2].name} and {shards[-1][2].name}"
            raise ValueError(f"{records_dir}: split {split} must be one set of shards; got {names}")
        missing = sorted(set(range(count)) - numbers.keys())
        if missing or len(numbers) != count:
            raise ValueError(
                f"{records_dir}: split {split} must have shards 0 to {count - 1}; got "
                f"{len(numbers)}, without {', '.join(f'{n:05d}' for n in missing[:5])}"
            )
    return {split: [path for *_, path in shards] for split, shards in sets.items()}


def _index_shards(
    paths: Sequence[Path], classes: Sequence[LabelClass], progress: Callable[[str], None]
) -> dict[Path, Part]:
    """Returns the parts of shards, one thread per core; reads only shards without a part."""
    stop = threading.Event()
    parts: dict[Path, Part] = {}
    report = make_reporter(0, len(paths), "shards", progress)
    with ThreadPoolExecutor(cores()) as pool:
        try:
            jobs = [pool.submit(_index_shard, path, classes, stop.is_set) for path in paths]
            for path, job in zip(paths, jobs, strict=True):
                parts[path] = job.result()
                report(len(parts))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return parts


def _index_shard(path: Path, classes: Sequence[LabelClass], stopped: Callable[[], bool]) -> Part:
    stat = path.stat()
    made_from = {
        "indexed": [path.name, stat.st_size, stat.st_mtime_ns],
        "classes": [c.to_json() for c in classes],
    }
    old = read_part(path)
    if old is not None and old.made_from == made_from:
        return old
    if old is not None and "inputs" in old.made_from:
        raise ValueError(
            f"{path}: must be written by another tool; got a shard of an interrupted conversion. "
            "Remedy: run data_prep.build_records as before"
        )
    sha256 = file_sha256(path)
    ids = {c.id for c in classes}
    facts: list[SampleFacts] = []
    try:
        for record in read_shard(path):
            if stopped():
                raise InterruptedError(f"{path}: the indexing was stopped")
            facts.append(inspect_record(record, ids))
    except ValueError as error:
        cause, _, remedy = str(error).removeprefix(f"{path}: ").partition(" Remedy: ")
        if not remedy or f"Remedy: {remedy}" == SHARD_REMEDY:
            remedy = "give intact shards in TF DeepLab's format, and the class table of the labels"
        raise ValueError(
            f"{path}: record {len(facts)}: {cause.rstrip('.')}. Remedy: {remedy}"
        ) from error
    part = Part(Shard(path.name, len(facts), stat.st_size, sha256), tuple(facts), {}, made_from)
    write_part(path, part)
    return part


def _join(name: str, parts: Sequence[Part], classes: Sequence[LabelClass]) -> tuple[Split, bytes]:
    facts = [sample for part in parts for sample in part.facts]
    repeated = [key for key, count in Counter(sample.key for sample in facts).items() if count > 1]
    if repeated or not facts:
        raise ValueError(
            f"split {name} must have samples, each with a unique image/filename; got "
            f"{f'{repeated[0]} more than once' if repeated else 'none'}"
        )
    return join_facts(name, [part.shard for part in parts], facts, {}, classes, {"indexed": True})


def _work_on(values: flags.FlagValues) -> int:
    records_dir = Path(cli.required(values, "records_dir"))
    classes = read_class_table(Path(cli.required(values, "classes")))
    started = time.monotonic()
    manifest = index_records(records_dir, classes, show)
    for split in manifest.splits.values():
        cli.report(f"{split.name}: {split.samples} samples in {len(split.shards)} shards")
    cli.report("\n".join(audit_lines(records_dir)))
    cli.report(f"{records_dir}: finished in {duration(time.monotonic() - started)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("records_dir", "", "the folder with the shards", flag_values=values)
    flags.DEFINE_string(
        "classes",
        "",
        "the class table of the labels, in the schema of Vistas' config files",
        flag_values=values,
    )
    return cli.run(_work_on, values, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
