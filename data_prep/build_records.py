"""Converts folders of street-scene images and labels to mapseg records.

Mapillary Vistas, all splits that have labels:
  python -m data_prep.build_records --vistas_dir=D --records_dir=R
Any folder of images and labels with a class table, one split at a time:
  python -m data_prep.build_records --image_dir=D/images --label_dir=D/labels \
      --classes=FILE.json --split=NAME --records_dir=R
The same command again continues an interrupted conversion. With --on_error=skip pairs that cannot
be converted are left out, and reported.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

import mapseg
from data_prep import sources
from data_prep.audit import AUDIT_NAME, audit_lines, has_audit, remove_audit, write_audit
from data_prep.convert import PARTS_DIR, Job, Resize
from data_prep.facts import join_facts
from data_prep.plan import check_made_from, check_space, discard_others, finished_part, plan_shards
from data_prep.workers import convert_shards
from mapseg import cli
from mapseg.data.manifest import MANIFEST_NAME, Manifest, Split, read_manifest, write_manifest
from mapseg.files import locked, write_bytes
from mapseg.progress import amount, duration, show

_SHOWN = 5  # of a list that is printed


def build_records(
    source: sources.Source,
    records_dir: Path,
    resize: Resize,
    workers: int,
    progress: Callable[[str], None],
    skip: bool = False,
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
      skip: leaves out the pairs that cannot be converted and notes why, in place of the error.

    Returns:
      The manifest, as written.

    Raises:
      ValueError: a pair that cannot be converted, named; or records that hold these splits already,
        made otherwise. Nothing half-written stays, and no new manifest. With `skip`, a split of
        such pairs alone; the manifest has the others.
      OSError: a file cannot be written, or the disk has no room for what is to come.
    """
    _check_records_dir(records_dir)
    plans = {s.name: plan_shards(s, source, resize, records_dir, skip) for s in source.splits}
    jobs = [job for plan in plans.values() for job in plan]
    if not (records_dir / PARTS_DIR).is_dir():
        check_space(records_dir, jobs)  # before anything is written
    refusal = f"{records_dir}: another conversion is writing here. Remedy: wait for it"
    with locked(records_dir / PARTS_DIR / "lock", refusal):
        old = _open_former(records_dir, source)
        _discard_leftovers(records_dir, old, plans)
        todo = [job for job in jobs if not finished_part(job)]
        if todo:
            progress(check_space(records_dir, todo))
            done = sum(len(job.pairs) for job in jobs) - sum(len(job.pairs) for job in todo)
            convert_shards(todo, done, workers, progress)
        manifest, tables = _merge(records_dir, old, source, resize, jobs)
        finished = not todo and manifest == old and not _lost(records_dir, tables)
        if manifest.splits and not finished:
            remove_audit(records_dir)
            for name, table in tables.items():
                write_bytes(records_dir / name, table)
            write_manifest(manifest)
            write_audit(manifest, progress)
            for name, plan in plans.items():  # of a split that was cut otherwise before
                discard_others(records_dir, name, plan)
    _check_not_empty(manifest, source)
    if finished:
        progress(f"nothing to do: {records_dir} is finished")
    return manifest


def _open_former(records_dir: Path, source: sources.Source) -> Manifest | None:
    """Returns what an earlier conversion finished here; its class table must be the same."""
    if not (records_dir / MANIFEST_NAME).is_file():
        return None
    former = read_manifest(records_dir, check_shards=False)
    if former.classes != source.classes:
        raise ValueError(
            f"{records_dir}: a class table must serve all splits; these records have another "
            "one. Remedy: give the same table, or another --records_dir"
        )
    return former


def _discard_leftovers(
    records_dir: Path, old: Manifest | None, plans: Mapping[str, Sequence[Job]]
) -> None:
    """Removes unfinished work of other options or files, and half-written files.

    Raises:
      ValueError: a split that is finished was made otherwise.
    """
    for name, plan in plans.items():
        if old is not None and name in old.splits:
            check_made_from(records_dir, old.splits[name], plan)
        else:
            discard_others(records_dir, name, [job for job in plan if finished_part(job)])
    for folder in (records_dir, records_dir / PARTS_DIR):
        for partial in folder.glob(".*.partial*"):  # of a conversion that was killed
            partial.unlink()


def _check_not_empty(manifest: Manifest, source: sources.Source) -> None:
    empty = [split.name for split in source.splits if split.name not in manifest.splits]
    if empty:
        raise ValueError(
            f"split {empty[0]} must have a pair that can be converted; got "
            f"{manifest.skipped[empty[0]]}. Remedy: mend such files, or take the split away, and "
            "run the same command again; splits that have others are finished"
        )


def _check_records_dir(records_dir: Path) -> None:
    begun = (records_dir / PARTS_DIR).is_dir() or (records_dir / MANIFEST_NAME).is_file()
    foreign = next(records_dir.glob("*.tfrecord*"), None)
    if foreign and not begun:
        raise ValueError(
            f"{records_dir}: must be empty or begun by this program; got {foreign.name}, written "
            "by another. Remedy: another --records_dir; data_prep.index_records makes shards of "
            "TF DeepLab usable where they are"
        )


def _merge(
    records_dir: Path,
    old: Manifest | None,
    source: sources.Source,
    resize: Resize,
    jobs: Sequence[Job],
) -> tuple[Manifest, dict[str, bytes]]:
    """Returns the manifest of what was there before and all jobs, which are finished.

    A split of which every pair was left out is among the skipped. Beside the manifest the new
    splits' tables of tiles, by file name.
    """
    splits = dict(old.splits) if old else {}
    skipped = {**(old.skipped if old else {}), **source.skipped}
    tables = {}
    for split in source.splits:
        found = [finished_part(job) for job in jobs if job.split == split.name]
        parts = [part for part in found if part is not None]
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
            skipped[split.name] = f"{len(left_out)} pairs, all left out, the first for: {first}"
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


def _lost(records_dir: Path, tables: dict[str, bytes]) -> bool:
    paths = {records_dir / name: table for name, table in tables.items()}
    whole = all(path.is_file() and path.read_bytes() == table for path, table in paths.items())
    return not (whole and has_audit(records_dir))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(_work_on, _define_flags(), argv, __doc__)


def _work_on(values: flags.FlagValues) -> int:
    resize = Resize(values.max_side, _parse_size(values.resize_to))
    records_dir = Path(cli.required(values, "records_dir"))
    source = _find_source(values)
    _print_source(source)
    started = time.monotonic()
    skip = values.on_error == "skip"
    manifest = build_records(source, records_dir, resize, values.workers, show, skip)
    for split in source.splits:
        _print_split(manifest.splits[split.name])
    if any(manifest.splits[split.name].left_out for split in source.splits):
        print("to try again what was left out: the same command with --on_error=stop")
    print(*audit_lines(records_dir), sep="\n")
    print(f"{records_dir}: finished in {duration(time.monotonic() - started)}")
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
    flags.DEFINE_enum(
        "on_error",
        "stop",
        ["stop", "skip"],
        "at a pair that cannot be converted: stop, or leave it out and report it at the end",
        flag_values=values,
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
    skip = values.on_error == "skip"
    if values.vistas_dir:
        if given:
            raise ValueError(f"vistas_dir must not be given together with {given[0]}")
        return sources.find_vistas(Path(values.vistas_dir), values.label_version, skip)
    if len(given) < len(folder_flags):
        missing = ", ".join(name for name in folder_flags if name not in given)
        raise ValueError(
            "source must be --vistas_dir, or all of --image_dir --label_dir --classes --split; "
            f"got no {missing if given else 'source'}"
        )
    if values.label_version:
        raise ValueError("label_version must be given with vistas_dir only")
    return sources.find_folders(
        Path(values.image_dir), Path(values.label_dir), Path(values.classes), values.split, skip
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


def _print_split(split: Split) -> None:
    size = amount(sum(shard.bytes for shard in split.shards))
    print(f"{split.name}: {split.samples} samples in {len(split.shards)} shards, {size}")
    for keys, what in (
        (split.made_upright, "made upright, as their EXIF orientation says"),
        (split.kept_turned, "kept as stored: their EXIF orientation contradicts the label"),
    ):
        if keys:
            more = ", ..." if len(keys) > _SHOWN else ""
            print(f"{split.name}: {len(keys)} images {what}: {', '.join(keys[:_SHOWN])}{more}")
    if split.left_out:
        print(f"{split.name}: {len(split.left_out)} pairs left out:")
        for reason in list(split.left_out.values())[:_SHOWN]:
            print(f"  {reason}")
        if len(split.left_out) > _SHOWN:
            print(f"  and {len(split.left_out) - _SHOWN} more, all named in {AUDIT_NAME}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
