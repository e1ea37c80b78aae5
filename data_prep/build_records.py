"""Converts folders of street-scene images and labels to mapseg records.

Mapillary Vistas, all splits that have labels:
  python -m data_prep.build_records --vistas_dir=D --records_dir=R
Cityscapes, train and val:
  python -m data_prep.build_records --cityscapes_dir=D --records_dir=R
Any folder of images and labels with a class table, one split at a time:
  python -m data_prep.build_records --image_dir=D/images --label_dir=D/labels \
      --classes=FILE.json --split=NAME --records_dir=R
If their names end differently, even in one folder:
  ... --image_suffix=_rgb.png --label_suffix=_ids.png
The same command resumes an interrupted conversion. With --on_error=skip pairs that cannot be
converted are left out and reported.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_prep import sources
from data_prep.audit import AUDIT_NAME, audit_lines
from data_prep.conversion import build_records
from data_prep.convert import Resize
from mapseg import cli
from mapseg.data.manifest import Split
from mapseg.data.pairing import Suffixes
from mapseg.progress import amount, duration, show

_SHOWN = 5  # list entries to print
_FOLDER_FLAGS = ("image_dir", "label_dir", "classes", "split")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(_work_on, _define_flags(), argv, __doc__)


def _work_on(values: flags.FlagValues) -> int:
    resize_to = cli.size(values, "resize_to") if values.resize_to else None
    resize = Resize(values.max_side, resize_to)
    records_dir = Path(cli.required(values, "records_dir"))
    source = _find_source(values)
    _print_source(source)
    started = time.monotonic()
    skip = values.on_error == "skip"
    manifest = build_records(source, records_dir, resize, values.workers, show, skip)
    for split in source.splits:
        _print_split(manifest.splits[split.name])
    if any(manifest.splits[split.name].left_out for split in source.splits):
        cli.report("to retry the pairs left out: the same command with --on_error=stop")
    cli.report("\n".join(audit_lines(records_dir)))
    cli.report(f"{records_dir}: finished in {duration(time.monotonic() - started)}")
    return 0


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()

    def text(name: str, help_text: str) -> None:
        flags.DEFINE_string(name, "", help_text, flag_values=values)

    text("vistas_dir", "a Mapillary Vistas folder, v1.2 or v2.0")
    text("label_version", "of Vistas, v1.2 or v2.0; default: the one that exists, v1.2 if both do")
    text(
        "cityscapes_dir", "instead of vistas_dir: a folder with Cityscapes' leftImg8bit and gtFine"
    )
    text("image_dir", "instead of vistas_dir: a folder of JPEG or PNG images")
    text("label_dir", "the folder of their labels: PNGs of ids under the same names")
    text("classes", "the class table of the labels, in the schema of Vistas' config files")
    text("image_suffix", "how the names of images end, such as _rgb.png")
    text("label_suffix", "how the names of labels end, such as _ids.png")
    text("split", "name of the split to make from the folders, such as training")
    text("records_dir", "folder for the records")
    text("resize_to", "HEIGHTxWIDTH, such as 384x512: resize every sample to this size")
    flags.DEFINE_integer(
        "max_side",
        0,
        "shrink images to at most this many pixels on the longer side; 0 is off",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "workers", 0, "number of processes; 0 is one per core", lower_bound=0, flag_values=values
    )
    flags.DEFINE_enum(
        "on_error",
        "stop",
        ["stop", "skip"],
        "at a pair that cannot be converted: stop, or leave it out and report it at the end",
        flag_values=values,
    )
    return values


def _find_source(values: flags.FlagValues) -> sources.Source:
    skip = values.on_error == "skip"
    if values.label_version and not values.vistas_dir:
        raise ValueError("label_version must be given only with vistas_dir")
    if values.vistas_dir:
        _reject_other_flags(values, "vistas_dir")
        return sources.find_vistas(Path(values.vistas_dir), values.label_version, skip)
    if values.cityscapes_dir:
        _reject_other_flags(values, "cityscapes_dir")
        return sources.find_cityscapes(Path(values.cityscapes_dir), skip)
    missing = [name for name in _FOLDER_FLAGS if not values[name].value]
    if missing:
        raise ValueError(
            "source must be --vistas_dir, --cityscapes_dir, or all of --image_dir --label_dir "
            "--classes --split; got no "
            f"{', '.join(missing) if len(missing) < len(_FOLDER_FLAGS) else 'source'}"
        )
    return sources.find_folders(
        Path(values.image_dir),
        Path(values.label_dir),
        Path(values.classes),
        values.split,
        skip,
        Suffixes(values.image_suffix, values.label_suffix),
    )


def _reject_other_flags(values: flags.FlagValues, name: str) -> None:
    """Rejects flags of other sources than that of the flag `name`."""
    for other in ("cityscapes_dir", *_FOLDER_FLAGS, "image_suffix", "label_suffix"):
        if other != name and values[other].value:
            raise ValueError(f"{name} must not be given together with {other}")


def _print_source(source: sources.Source) -> None:
    version_note = f"labels {source.label_version}, " if source.label_version else ""
    cli.report(f"{version_note}{len(source.classes)} classes")
    for version in source.other_versions:
        cli.report(f"labels {version} exist too: --label_version={version} selects them")
    for name, reason in source.skipped.items():
        cli.report(f"skipped {name}: {reason}")
    for split in source.splits:
        cli.report(
            f"{split.name}: {len(split.pairs)} pairs in {split.image_dir}, {split.label_dir}"
        )


def _print_split(split: Split) -> None:
    size = amount(sum(shard.bytes for shard in split.shards))
    cli.report(f"{split.name}: {split.samples} samples in {len(split.shards)} shards, {size}")
    for keys, treatment in (
        (split.made_upright, "made upright, according to their EXIF orientation"),
        (split.kept_turned, "kept as stored: their EXIF orientation contradicts the label"),
    ):
        if keys:
            shown = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
            cli.report(f"{split.name}: {len(keys)} images {treatment}: {shown}")
    if split.left_out:
        cli.report(f"{split.name}: {len(split.left_out)} pairs left out:")
        for reason in list(split.left_out.values())[:_SHOWN]:
            cli.report(f"  {reason}")
        if len(split.left_out) > _SHOWN:
            cli.report(f"  and {len(split.left_out) - _SHOWN} more, all named in {AUDIT_NAME}")


if __name__ == "__main__":
    sys.exit(main())
