"""Converts folders of street-scene images and labels to mapseg records.

Mapillary Vistas, all splits that have labels:
  python -m data_prep.build_records --vistas_dir=D --records_dir=R
Any folder of images and labels with a class table, one split at a time:
  python -m data_prep.build_records --image_dir=D/images --label_dir=D/labels \
      --classes=FILE.json --split=NAME --records_dir=R
The same command again continues an interrupted conversion.
"""

import contextlib
import itertools
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import flags

import mapseg
from data_prep import sources
from data_prep.convert import (
    PARTS_DIR,
    Job,
    Part,
    Resize,
    convert_shard,
    part_path,
    read_part,
)
from data_prep.facts import join_facts
from mapseg import cli
from mapseg.files import locked, write_bytes
from mapseg.records import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    shard_name,
    write_manifest,
)

_SHARD_BYTES = 256 << 20
_MIN_SHARDS = 16  # so that a small data set keeps that many cores busy
_REPORT_SECS = 3.0


def build_records(
    source: sources.Source,
    records_dir: Path,
    resize: Resize,
    workers: int,
    progress: Callable[[str], None],
) -> Manifest:
    """Converts a source into a records folder, or goes on with it, or adds splits to it.

    Shards that an earlier call finished from the same files and options stay as they are. The
    result does not depend on the number of workers, nor on interruptions.

    Args:
      source: what to convert.
      records_dir: made if need be.
      resize: how images and labels are resized.
      workers: processes; 0 is one for each core, 1 is this one.
      progress: gets lines to show.

    Returns:
      The manifest, as written.

    Raises:
      ValueError: a pair that cannot be converted, named; or records that hold these splits
        already, made otherwise. Nothing half-written stays, and no new manifest.
      OSError: a file cannot be read or written.
    """
    _check_records_dir(records_dir)
    refusal = f"{records_dir}: another conversion is writing here. Remedy: wait for it"
    with locked(records_dir / PARTS_DIR / "lock", refusal):
        has_manifest = (records_dir / MANIFEST_NAME).is_file()
        old = read_manifest(records_dir, check_shards=False) if has_manifest else None
        if old is not None and old.classes != source.classes:
            raise ValueError(
                f"{records_dir}: a class table must serve all splits; these records have another "
                "one. Remedy: give the same table, or another --records_dir"
            )
        plans = {s.name: _plan(s, source, resize, records_dir) for s in source.splits}
        for name, plan in plans.items():
            if old is not None and name in old.splits:
                _check_made_from(records_dir, name, plan)
            else:
                _discard_others(records_dir, name, plan)
        for folder in (records_dir, records_dir / PARTS_DIR):
            for partial in folder.glob(".*.partial*"):  # of a conversion that was killed
                partial.unlink()
        jobs = [job for plan in plans.values() for job in plan]
        todo = [job for job in jobs if not _finished(job)]
        done = sum(len(job.pairs) for job in jobs) - sum(len(job.pairs) for job in todo)
        _convert(todo, done, workers, progress)
        manifest, tables = _merge(old, source, resize, jobs)
        if old is not None and not todo and manifest == old:
            progress(f"nothing to do: {records_dir} is finished")
        else:
            for name, table in tables.items():
                write_bytes(records_dir / name, table)
            write_manifest(records_dir, manifest)
    return manifest


def _check_records_dir(records_dir: Path) -> None:
    begun = (records_dir / PARTS_DIR).is_dir() or (records_dir / MANIFEST_NAME).is_file()
    foreign = next(records_dir.glob("*.tfrecord*"), None)
    if foreign and not begun:
        raise ValueError(
            f"{records_dir}: must be empty or begun by this program; got {foreign.name}, written "
            "by another. Remedy: another --records_dir"
        )


def _plan(
    split: sources.SourceSplit, source: sources.Source, resize: Resize, records_dir: Path
) -> list[Job]:
    """Cuts a split into shards: a function of the files alone."""
    inputs = {pair.key: _identify(pair, split) for pair in split.pairs}
    groups = partition([image[1] + label[1] for image, label in inputs.values()])
    jobs = []
    for number, places in enumerate(groups):
        pairs = tuple(split.pairs[i] for i in places)
        made_from = {
            "format_version": FORMAT_VERSION,
            **_resize_json(resize),
            "classes": [c.to_json() for c in source.classes],
            "inputs": {pair.key: inputs[pair.key] for pair in pairs},
        }
        path = records_dir / shard_name(split.name, number, len(groups))
        jobs.append(Job(path, split.name, pairs, resize, source.classes, made_from))
    return jobs


def _identify(pair: sources.Pair, split: sources.SourceSplit) -> list[list[Any]]:
    """[[name, bytes, modification time] of the image, the same of the label]."""
    files = ((pair.image_path, split.image_dir), (pair.label_path, split.label_dir))
    found = [(str(path.relative_to(folder)), path.stat()) for path, folder in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def _resize_json(resize: Resize) -> dict[str, Any]:
    return {"max_side": resize.max_side, "resize_to": resize.resize_to and list(resize.resize_to)}


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


def _check_made_from(records_dir: Path, split: str, jobs: Sequence[Job]) -> None:
    """Refuses a finished split that was made from other files or options."""
    paths = sorted((records_dir / PARTS_DIR).glob(_pattern(split)))
    old = [part.made_from for path in paths if (part := read_part(path))]
    new = [job.made_from for job in jobs]
    if old != new:
        raise ValueError(
            f"{records_dir}: split {split} is finished, and {_difference(old, new)}. "
            f"Remedy: another --records_dir, or remove {records_dir}"
        )


def _pattern(split: str) -> str:
    return f"{split}-?????-of-?????.tfrecord*"


def _difference(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> str:
    if not old:
        return f"what it was made from is not known, as its notes in {PARTS_DIR} are gone"
    for field in ("format_version", "max_side", "resize_to"):
        if old[0][field] != new[0][field]:
            return f"its {field} was {old[0][field]}; got {new[0][field]}"
    then, now = ({k: v for m in made for k, v in m["inputs"].items()} for made in (old, new))
    keys = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
    if not keys:
        return f"its notes in {PARTS_DIR} are not whole"
    return f"its source has changed since: {len(keys)} pairs differ, the first is {keys[0]}"


def _discard_others(records_dir: Path, split: str, jobs: Sequence[Job]) -> None:
    """Removes what an unfinished conversion from other files or options left of a split."""
    kept = {path for job in jobs if _finished(job) for path in (job.path, part_path(job.path))}
    for folder in (records_dir, records_dir / PARTS_DIR):
        for path in set(folder.glob(_pattern(split))) - kept:
            path.unlink()


def _finished(job: Job) -> Part | None:
    """Returns what is noted of a finished shard; None where it has still to be made."""
    part = read_part(part_path(job.path))
    if part is None or part.made_from != job.made_from or not job.path.is_file():
        return None
    return part if job.path.stat().st_size == part.shard.bytes else None


def _convert(jobs: Sequence[Job], done: int, workers: int, progress: Callable[[str], None]) -> None:
    """Runs the jobs; `done` pairs were finished before."""
    report = make_reporter(done, done + sum(len(job.pairs) for job in jobs), progress)
    workers = min(workers or _cores(), len(jobs))
    if workers <= 1:
        count = itertools.count(1)
        for job in jobs:
            convert_shard(job, lambda: report(next(count)))
        return
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (counter, stop)) as pool:
        try:
            with _interrupts_ignored():
                pending = {pool.submit(_work, job) for job in jobs}
            while pending:
                ended, pending = wait(pending, _REPORT_SECS, FIRST_EXCEPTION)
                report(counter.value)
                for future in ended:
                    future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died, perhaps for want of memory. Remedy: fewer --workers; "
                "finished shards are kept"
            ) from error
        finally:
            stop.set()  # a running worker ends its pair and removes its unfinished shard
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_reporter(
    before: int, total: int, progress: Callable[[str], None]
) -> Callable[[int], None]:
    """Makes a function to call with the number of pairs done, often; it reports every 3 s.

    Args:
      before: pairs that were done before.
      total: pairs, those included.
      progress: gets a line with the rate and the time left.
    """
    started = time.monotonic()
    last = started

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _REPORT_SECS or not done:
            return
        last = now
        rate = done / (now - started)
        left = math.ceil((total - before - done) / rate)
        progress(f"{before + done}/{total} pairs, {rate:.1f} pairs/s, {_clock(left)} left")

    return report


def _clock(secs: int) -> str:
    return f"{secs // 3600}:{secs // 60 % 60:02}:{secs % 60:02}"


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started within ignore Ctrl-C for good: their parent tells them to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_counter: Any = None
_stop: Any = None


def _start_worker(counter: Any, stop: Any) -> None:
    global _counter, _stop
    _counter, _stop = counter, stop
    cv2.setNumThreads(1)  # the processes share the cores
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> None:
    convert_shard(job, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1
    if _stop.is_set():
        raise InterruptedError("told to stop")


def _merge(
    old: Manifest | None, source: sources.Source, resize: Resize, jobs: Sequence[Job]
) -> tuple[Manifest, dict[str, bytes]]:
    """Returns the manifest of what was there before and all jobs, which are finished.

    Beside it the new splits' tables of tiles, by file name.
    """
    splits = dict(old.splits) if old else {}
    tables = {}
    for split in source.splits:
        found = [_finished(job) for job in jobs if job.split == split.name]
        parts = [part for part in found if part is not None]
        options = {
            "image_dir": str(split.image_dir.resolve()),
            "label_dir": str(split.label_dir.resolve()),
            "label_version": source.label_version,
            **_resize_json(resize),
        }
        shards = [part.shard for part in parts]
        facts = [sample for part in parts for sample in part.facts]
        content, table = join_facts(split.name, shards, facts, {}, source.classes, options)
        splits[split.name], tables[content.tile_table] = content, table
    skipped = {**(old.skipped if old else {}), **source.skipped}
    manifest = Manifest(
        mapseg_version=mapseg.__version__,
        classes=source.classes,
        splits=splits,
        skipped={name: reason for name, reason in skipped.items() if name not in splits},
    )
    return manifest, tables


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(_work_on, _define_flags(), argv, __doc__)


def _work_on(values: flags.FlagValues) -> int:
    resize = Resize(values.max_side, _parse_size(values.resize_to))
    records_dir = Path(cli.required(values, "records_dir"))
    source = _find_source(values)
    _print_source(source)
    started = time.monotonic()
    manifest = build_records(source, records_dir, resize, values.workers, show)
    _print_manifest(manifest, source)
    print(f"{records_dir}: finished in {time.monotonic() - started:.0f} s")
    return 0


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()

    def text(name: str, help_text: str) -> None:
        flags.DEFINE_string(name, "", help_text, flag_values=values)

    text("vistas_dir", "a Mapillary Vistas folder, v1.2 or v2.0")
    text("label_version", "of Vistas, v1.2 or v2.0; default: the one there is, v1.2 if both are")
    text("image_dir", "a folder of JPEG or PNG images, in place of vistas_dir")
    text("label_dir", "the folder of their labels: PNGs of ids under the same names")
    text("classes", "the class table of the labels, in the schema of Vistas' config files")
    text("split", "name of the split that the folders become, such as training")
    text("records_dir", "where the records go")
    text("resize_to", "HEIGHTxWIDTH, such as 384x512: every sample gets this size")
    flags.DEFINE_integer(
        "max_side",
        0,
        "shrink images to at most this many pixels on the longer side; 0 is off",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "workers", 0, "processes; 0 is one for each core", lower_bound=0, flag_values=values
    )
    return values


def _parse_size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ValueError(f"resize_to must be HEIGHTxWIDTH in pixels, such as 384x512; got {text}")
    return int(match[1]), int(match[2])


def _find_source(values: flags.FlagValues) -> sources.Source:
    folder_flags = {
        name: values[name].value for name in ("image_dir", "label_dir", "classes", "split")
    }
    given = [name for name, value in folder_flags.items() if value]
    if values.vistas_dir:
        if given:
            raise ValueError(f"vistas_dir must not be given together with {given[0]}")
        return sources.find_vistas(Path(values.vistas_dir), values.label_version)
    if len(given) < len(folder_flags):
        missing = ", ".join(name for name in folder_flags if name not in given)
        raise ValueError(
            "source must be --vistas_dir, or all of --image_dir --label_dir --classes --split; "
            f"got no {missing if given else 'source'}"
        )
    if values.label_version:
        raise ValueError("label_version must be given with vistas_dir only")
    return sources.find_folders(
        Path(values.image_dir), Path(values.label_dir), Path(values.classes), values.split
    )


def _print_source(source: sources.Source) -> None:
    taken = f"labels {source.label_version}, " if source.label_version else ""
    print(f"{taken}{len(source.classes)} classes")
    for version in source.other_versions:
        print(f"labels {version} are there too: --label_version={version} takes them")
    for name, reason in source.skipped.items():
        print(f"skipped {name}: {reason}")
    for split in source.splits:
        print(f"{split.name}: {len(split.pairs)} pairs in {split.image_dir}, {split.label_dir}")


def _print_manifest(manifest: Manifest, source: sources.Source) -> None:
    for split in (manifest.splits[s.name] for s in source.splits):
        size_mb = sum(shard.bytes for shard in split.shards) / 1e6
        print(
            f"{split.name}: {split.samples} samples in {len(split.shards)} shards, {size_mb:.1f} MB"
        )
        for keys, what in (
            (split.made_upright, "made upright, as their EXIF orientation says"),
            (split.kept_turned, "kept as stored: their EXIF orientation contradicts the label"),
        ):
            if keys:
                more = ", ..." if len(keys) > 5 else ""
                print(f"{split.name}: {len(keys)} images {what}: {', '.join(keys[:5])}{more}")


def show(text: str) -> None:
    """Shows progress: on a terminal in one line, elsewhere line by line."""
    if sys.stderr.isatty():
        print(f"{text:<79}", end="\r", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
