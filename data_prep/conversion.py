"""Converts a whole source: plans shards, resumes, and merges their parts into the manifest."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mapseg
from data_prep import sources
from data_prep.audit import has_audit, remove_audit, write_audit
from data_prep.convert import Job, Resize
from data_prep.facts import join_facts
from data_prep.parts import PARTS_DIR
from data_prep.plan import check_made_from, check_space, finished_part, plan_shards, remove_shards
from data_prep.workers import convert_shards
from mapseg.data.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from mapseg.files import locked, write_bytes


def build_records(
    source: sources.Source,
    records_dir: Path,
    resize: Resize,
    workers: int,
    progress: Callable[[str], None],
    skip: bool = False,
) -> Manifest:
    """Converts a source into a records folder, resumes its conversion, or adds splits to it.

    Shards that an earlier call finished from the same files, or copies of them, and options are
    kept. The result depends neither on the number of workers nor on interruptions.

    Args:
      source: the dataset to convert.
      records_dir: created if it does not exist.
      resize: how images and labels are resized.
      workers: number of processes; 0 uses one per core, 1 only this process.
      progress: receives lines to show.
      skip: leaves out pairs that cannot be converted and notes the reason, instead of an error.

    Returns:
      The manifest, as written.

    Raises:
      ValueError: a pair that cannot be converted, or records that already have these splits from
        other files or options. No partial file or new manifest remains. With `skip`, a split
        without any convertible pair; the manifest has the other splits.
      OSError: a file cannot be written, or the disk has too little space.
    """
    _check_records_dir(records_dir, source)
    planned = (resize, records_dir, skip, progress)
    plans = {split.name: plan_shards(split, source, *planned) for split in source.splits}
    jobs = [job for plan in plans.values() for job in plan]
    if not (records_dir / PARTS_DIR).is_dir():
        check_space(records_dir, jobs)  # before anything is written
    refusal = f"{records_dir}: another conversion is writing here. Remedy: wait for it to finish"
    with locked(records_dir / PARTS_DIR / "lock", refusal):
        old = _read_earlier(records_dir, source)
        _discard_leftovers(records_dir, old, plans)
        todo = [job for job in jobs if not finished_part(job)]
        if todo:
            progress(check_space(records_dir, todo))
            done = sum(len(job.pairs) for job in jobs) - sum(len(job.pairs) for job in todo)
            convert_shards(todo, done, workers, progress)
        manifest, tables = _merge(records_dir, old, source, resize, jobs)
        finished = not todo and manifest == old and _has_files(records_dir, tables)
        if manifest.splits and not finished:
            remove_audit(records_dir)
            for name, table in tables.items():
                write_bytes(records_dir / name, table)
            write_manifest(manifest)
            write_audit(manifest, progress)
            for name, plan in plans.items():  # of a split that was sharded differently before
                remove_shards(records_dir, name, plan)
    _check_not_empty(manifest, source)
    if finished:
        progress(f"nothing to do: {records_dir} is finished")
    return manifest


def _read_earlier(records_dir: Path, source: sources.Source) -> Manifest | None:
    """Reads the manifest of an earlier conversion, whose class table must be the same."""
    if not (records_dir / MANIFEST_NAME).is_file():
        return None
    earlier = read_manifest(records_dir, check_shards=False)
    if earlier.classes != source.classes:
        raise ValueError(
            f"{records_dir}: the class table must be the same for all splits; got a different one. "
            "Remedy: give the same table, or choose another --records_dir"
        )
    return earlier


def _discard_leftovers(
    records_dir: Path, old: Manifest | None, plans: Mapping[str, Sequence[Job]]
) -> None:
    """Removes unfinished work from other options or files, and partial files.

    Raises:
      ValueError: a finished split was made from other options or files.
    """
    for name, plan in plans.items():
        if old is not None and name in old.splits:
            check_made_from(records_dir, old.splits[name], plan)
        else:
            remove_shards(records_dir, name, [job for job in plan if finished_part(job)])
    for folder in (records_dir, records_dir / PARTS_DIR):
        for partial in folder.glob(".*.partial*"):  # of a conversion that was killed
            partial.unlink()


def _check_not_empty(manifest: Manifest, source: sources.Source) -> None:
    empty = [split.name for split in source.splits if split.name not in manifest.splits]
    if empty:
        raise ValueError(
            f"split {empty[0]} must have a pair that can be converted; got "
            f"{manifest.skipped[empty[0]]}. Remedy: repair the files or remove the split, and run "
            "the same command again; the other splits are finished"
        )


def _check_records_dir(records_dir: Path, source: sources.Source) -> None:
    for folder in (f for split in source.splits for f in (split.image_dir, split.label_dir)):
        if records_dir.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{records_dir}: must lie outside the folders of images and labels; got a folder "
                f"inside {folder}. Remedy: choose another --records_dir"
            )
    begun = (records_dir / PARTS_DIR).is_dir() or (records_dir / MANIFEST_NAME).is_file()
    foreign = next(records_dir.glob("*.tfrecord*"), None)
    if foreign and not begun:
        raise ValueError(
            f"{records_dir}: must be empty or begun by this program; got {foreign.name}, written "
            "by another tool. Remedy: choose another --records_dir, or make shards of TF DeepLab "
            "usable in place with data_prep.index_records"
        )


def _merge(
    records_dir: Path,
    old: Manifest | None,
    source: sources.Source,
    resize: Resize,
    jobs: Sequence[Job],
) -> tuple[Manifest, dict[str, bytes]]:
    """Merges the earlier manifest with all jobs, which must be finished.

    A split whose pairs were all left out is listed as skipped.

    Returns:
      The manifest, and the tile tables of the new splits by file name.
    """
    splits = dict(old.splits) if old else {}
    skipped = {**(old.skipped if old else {}), **source.skipped}
    tables = {}
    for split in source.splits:
        finished = [finished_part(job) for job in jobs if job.split == split.name]
        parts = [part for part in finished if part is not None]
        options = {
            "image_dir": str(split.image_dir.resolve()),
            "label_dir": str(split.label_dir.resolve()),
            "label_version": source.label_version,
            "max_side": resize.max_side,
            "resize_to": resize.resize_to and list(resize.resize_to),
        }
        shards = [part.shard for part in parts]
        facts = [sample for part in parts for sample in part.facts]
        left_out = dict(split.left_out)
        for part in parts:
            left_out.update(part.left_out)
        left_out = dict(sorted(left_out.items()))
        if not facts:
            first = next(iter(left_out.values())).rstrip(".")
            skipped[split.name] = f"{len(left_out)} pairs, all left out; the first: {first}"
            splits.pop(split.name, None)
            continue
        content, table = join_facts(split.name, shards, facts, left_out, source.classes, options)
        splits[split.name], tables[content.tile_table] = content, table
    manifest = Manifest(
        records_dir=records_dir,
        mapseg_version=mapseg.__version__,
        classes=source.classes,
        splits=splits,
        skipped={name: reason for name, reason in skipped.items() if name not in splits},
    )
    return manifest, tables


def _has_files(records_dir: Path, tables: dict[str, bytes]) -> bool:
    """Returns whether the folder has these tile tables and the audit, undamaged."""
    paths = {records_dir / name: table for name, table in tables.items()}
    intact = all(path.is_file() and path.read_bytes() == table for path, table in paths.items())
    return intact and has_audit(records_dir)
