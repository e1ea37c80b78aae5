"""Audit of a records folder: its content, and what looks wrong. Writes audit.json and audit.png.

Uses only the facts that the conversion recorded for each sample (facts.py); reads no shard.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.facts import KEPT_TURNED, MADE_UPRIGHT, SampleFacts
from data_prep.parts import read_part
from mapseg.data.label_files import MASK_IDS
from mapseg.data.manifest import Manifest, Split
from mapseg.files import write_text
from mapseg.labels import LabelClass
from mapseg.stored_json import read_checked_json, with_sha256

AUDIT_NAME, PICTURE_NAME = "audit.json", "audit.png"

_SMALL = 4  # an image is small if its long side is under the split's median divided by this
_TURNED = {
    MADE_UPRIGHT: "made upright, according to its EXIF orientation",
    KEPT_TURNED: "kept as stored: its EXIF orientation contradicts the label",
}


def make_audit(manifest: Manifest, facts: Mapping[str, Sequence[SampleFacts]]) -> dict[str, Any]:
    """Summarises the splits, and lists the samples that look wrong.

    A sample is suspicious if its label has no evaluated class, a single class, or only 0 and 255
    (a mask; but in an indexed split, 255 is TF DeepLab's void); if its image is byte-identical to
    another, has an EXIF orientation, or is far smaller than the rest of the split; or if its
    label's palette has the class table's colours in another order, like a colour map saved by an
    image editor.

    Args:
      manifest: the records' manifest.
      facts: the facts of each split's samples, in stored order.

    Returns:
      JSON: `suspicious` counts by reason, the suspicious `samples`, and `splits`.
    """
    owners = defaultdict(list)
    for name in sorted(facts):
        for sample in facts[name]:
            owners[sample.image_sha256].append(f"{name}/{sample.key}")
    samples = [
        {"split": name, "key": sample.key, "reason": reason, "detail": detail}
        for name in sorted(facts)
        for sample, reason, detail in _suspicious(
            manifest.splits[name], facts[name], manifest.classes, owners
        )
    ]
    return {
        "suspicious": dict(sorted(Counter(sample["reason"] for sample in samples).items())),
        "samples": samples,
        "splits": {
            name: _sum_up(manifest.splits[name], facts[name], manifest.classes)
            for name in sorted(facts)
        },
    }


def _suspicious(
    split: Split,
    facts: Sequence[SampleFacts],
    classes: Sequence[LabelClass],
    owners: Mapping[str, Sequence[str]],
) -> Iterator[tuple[SampleFacts, str, str]]:
    """Yields (sample, reason, detail)."""
    names = {c.id: c.name for c in classes}
    evaluated = {c.id for c in classes if c.evaluate}
    median = float(np.median([max(sample.size) for sample in facts]))
    for sample in facts:
        ids = set(sample.pixels)
        if ids == MASK_IDS and not split.indexed:
            yield sample, "mask", "the label has only the values 0 and 255: not a map of ids"
        elif not ids & evaluated:
            id_names = ", ".join(names.get(i, f"id {i}") for i in sorted(ids))
            yield sample, "no evaluated class", f"the label has only {id_names}"
        elif len(ids) == 1:
            yield sample, "single class", f"the label has only {names[ids.pop()]}"
        name = f"{split.name}/{sample.key}"
        copies = [owner for owner in owners[sample.image_sha256] if owner != name]
        if copies:
            rest = f" and {len(copies) - 1} more" if len(copies) > 1 else ""
            yield sample, "same image", f"equal, byte for byte, to {copies[0]}{rest}"
        if sample.orientation:
            yield sample, "turned image", _TURNED[sample.orientation]
        if sample.palette:
            yield sample, "palette of other classes", f"of the label file: {sample.palette}"
        if max(sample.size) < median / _SMALL:
            height, width = sample.size
            yield sample, "small image", f"{height}x{width}; the median long side is {median:g}"


def _sum_up(
    split: Split, facts: Sequence[SampleFacts], classes: Sequence[LabelClass]
) -> dict[str, Any]:
    pixels, samples = Counter[int](), Counter[int]()
    tiles = np.zeros(256, np.int64)
    for sample in facts:
        pixels.update(sample.pixels)
        samples.update(sample.pixels.keys())
        tiles += np.unpackbits(sample.held, axis=1).sum(axis=0, dtype=np.int64)
    total = pixels.total()
    areas = np.sort([height * width / 1e6 for height, width in (f.size for f in facts)])
    return {
        "samples": len(facts),
        "megapixels": {
            "total": round(float(areas.sum()), 3),
            "smallest": round(float(areas[0]), 3),
            "median": round(float(np.median(areas)), 3),
            "largest": round(float(areas[-1]), 3),
        },
        "sizes": {f"{height}x{width}": n for (height, width), n in split.sizes.items()},
        "left_out": split.left_out,
        "tiles": sum(len(sample.held) for sample in facts),
        "never": [c.name for c in classes if not samples[c.id]],
        "pixels_of_no_class": total - sum(pixels[c.id] for c in classes),
        "classes": [
            {
                "id": c.id,
                "name": c.name,
                "pixels": pixels[c.id],
                "share": pixels[c.id] / total,
                "samples": samples[c.id],
                "tiles": int(tiles[c.id]),
            }
            for c in classes
        ],
    }


def write_audit(manifest: Manifest, progress: Callable[[str], None]) -> None:
    """Writes the audit of a records folder next to its manifest, the picture first.

    Args:
      manifest: the folder's manifest.
      progress: receives a line for each split whose parts are missing.
    """
    from mapseg.charts import plot_audit  # here: the conversion's workers need no matplotlib

    facts = {}
    for name in manifest.splits:
        parts = [read_part(path) for path in manifest.shard_paths(name)]
        if all(parts):
            facts[name] = [sample for part in parts if part for sample in part.facts]
        else:
            progress(f"split {name} is not in {AUDIT_NAME}: the notes on its shards are missing")
    audit = make_audit(manifest, facts)
    plot_audit(manifest.classes, *_plot_data(manifest, audit), manifest.records_dir / PICTURE_NAME)
    write_text(manifest.records_dir / AUDIT_NAME, json.dumps(with_sha256(audit), indent=1) + "\n")


def _plot_data(manifest: Manifest, audit: dict[str, Any]) -> tuple[Any, Any, Any, list[str]]:
    """Returns the content of the picture: shares of pixels and of samples, sizes, notes."""
    splits = dict(sorted(audit["splits"].items(), key=lambda item: -item[1]["samples"]))
    pixels = {
        name: np.array([c["share"] for c in split["classes"]]) for name, split in splits.items()
    }
    samples = {
        name: np.array([c["samples"] for c in split["classes"]]) / split["samples"]
        for name, split in splits.items()
    }
    sizes = {name: manifest.splits[name].sizes for name in splits}
    notes = []
    for name, split in splits.items():
        areas = split["megapixels"]
        notes += [
            f"{name}: {split['samples']} samples, {areas['total']:.1f} megapixels",
            f"    each {areas['smallest']:.2f} to {areas['largest']:.2f}, "
            f"median {areas['median']:.2f}",
            f"    {len(split['never'])} of {len(split['classes'])} classes never occur",
            f"    {len(split['left_out'])} pairs left out",
        ]
    notes += ["", "suspicious samples: " + ("" if audit["suspicious"] else "none")]
    notes += [f"    {count} {reason}" for reason, count in audit["suspicious"].items()]
    return pixels, samples, sizes, notes


def has_audit(records_dir: Path) -> bool:
    """Returns whether a folder has an intact audit."""
    audit = read_checked_json(records_dir / AUDIT_NAME)
    return audit is not None and (records_dir / PICTURE_NAME).is_file()


def remove_audit(records_dir: Path) -> None:
    """Removes an outdated audit."""
    for name in (AUDIT_NAME, PICTURE_NAME):
        (records_dir / name).unlink(missing_ok=True)


def audit_lines(records_dir: Path) -> Iterator[str]:
    """Yields the lines of a report on a folder's audit."""
    audit = json.loads((records_dir / AUDIT_NAME).read_text(encoding="utf-8"))
    files = f"audit: {records_dir / PICTURE_NAME}, {AUDIT_NAME}"
    counts = ", ".join(f"{n} {reason}" for reason, n in audit["suspicious"].items())
    yield f"{files}; suspicious samples: {counts or 'none'}"
