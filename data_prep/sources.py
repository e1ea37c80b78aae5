"""Finds the image/label pairs of a data set on disk, without opening a file of pixels.

Knows Mapillary Vistas, flat (v1.2) and nested (v2.0), and any two folders of images and labels.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.pairing import Pair, Suffixes, content, find_pairs
from mapseg.labels import LabelClass, read_class_table

# By label version, where its class table and a split's labels may lie. The first version that a
# folder has is taken: published scores, and the runs of 2018, are on v1.2.
_TABLES = {"v1.2": ("config_v1.2.json", "config.json"), "v2.0": ("config_v2.0.json",)}
_LABEL_DIRS = {"v1.2": ("v1.2/labels", "labels"), "v2.0": ("v2.0/labels",)}


@dataclass(frozen=True)
class SourceSplit:
    """The pairs of one split, by ascending key, and by key of what has no pair, the reason."""

    name: str
    image_dir: Path
    label_dir: Path
    pairs: tuple[Pair, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,199}", self.name):
            raise ValueError(
                "split must be a name of letters, digits, and . - _ between, at most 200; got "
                f"{self.name}"
            )


@dataclass(frozen=True)
class Source:
    """A data set to convert.

    Attributes:
      classes: its class table.
      splits: those that have labels.
      skipped: by name of a split without labels, the reason.
      label_version: of Vistas; empty for plain folders.
      other_versions: label versions of Vistas that are there too, and not taken.
    """

    classes: tuple[LabelClass, ...]
    splits: tuple[SourceSplit, ...]
    skipped: dict[str, str]
    label_version: str = ""
    other_versions: tuple[str, ...] = ()


def find_folders(
    image_dir: Path,
    label_dir: Path,
    classes_path: Path,
    split: str,
    skip: bool = False,
    suffixes: Suffixes | None = None,
) -> Source:
    """Finds a split in two folders: an image's partner is the label of the same path and stem.

    Args:
      image_dir: JPEG or PNG images, in sub-folders too.
      label_dir: PNG labels, under the same relative paths.
      classes_path: the class table.
      split: its name.
      skip: leaves out what has no partner, in place of the error.
      suffixes: how the names of images and labels end.

    Raises:
      FileNotFoundError: a folder or the class table does not exist.
      ValueError: a missing partner, or a class table that is none.
    """
    classes = read_class_table(classes_path)
    found = _find_split(split, image_dir, label_dir, skip, suffixes)
    return Source(classes, (found,), skipped={})


def find_vistas(vistas_dir: Path, label_version: str = "", skip: bool = False) -> Source:
    """Finds the splits of a Mapillary Vistas folder.

    Args:
      vistas_dir: holds `config_*.json` and, for each split, `images` beside `labels` or
        `<version>/labels`.
      label_version: v1.2 or v2.0; empty takes the one there is, v1.2 where both are.
      skip: leaves out what has no partner, in place of the error.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: the folder is not laid out so, lacks that version, or a partner is missing.
    """
    if not vistas_dir.is_dir():
        raise FileNotFoundError(f"{vistas_dir}: no such folder")
    splits = sorted(d.name for d in vistas_dir.iterdir() if (d / "images").is_dir())
    tables = {
        version: path
        for version, path in _tables(vistas_dir).items()
        if any(_label_dir(vistas_dir / split, version) for split in splits)
    }
    if not tables:
        raise ValueError(
            f"{vistas_dir}: must hold SPLIT/images, SPLIT/labels (or SPLIT/v2.0/labels) and "
            f"config_v1.2.json, config_v2.0.json or config.json; got {content(vistas_dir)}. "
            "Remedy: give the folder that holds training/ and validation/, or --image_dir, "
            "--label_dir and --classes"
        )
    version = label_version or next(iter(tables))
    if version not in tables:
        raise ValueError(
            f"{vistas_dir}: label_version must be one that is there, {' or '.join(tables)}; "
            f"got {version}"
        )
    taken, skipped = [], {}
    for name in splits:
        image_dir, label_dir = vistas_dir / name / "images", _label_dir(vistas_dir / name, version)
        if label_dir is None:
            skipped[name] = f"{vistas_dir / name} has no {version} labels"
            continue
        taken.append(_find_split(name, image_dir, label_dir, skip))
    return Source(
        classes=read_class_table(tables[version]),
        splits=tuple(taken),
        skipped=skipped,
        label_version=version,
        other_versions=tuple(v for v in tables if v != version),
    )


def _tables(vistas_dir: Path) -> dict[str, Path]:
    """The class table files that are there, by label version."""
    paths = {
        version: next((vistas_dir / n for n in names if (vistas_dir / n).is_file()), None)
        for version, names in _TABLES.items()
    }
    return {version: path for version, path in paths.items() if path is not None}


def _label_dir(split_dir: Path, version: str) -> Path | None:
    """The folder with this version's labels, unless there is none or it is empty."""
    paths = (split_dir / name for name in _LABEL_DIRS[version])
    return next((path for path in paths if path.is_dir() and any(path.iterdir())), None)


def _find_split(
    name: str, image_dir: Path, label_dir: Path, skip: bool, suffixes: Suffixes | None = None
) -> SourceSplit:
    pairs, left_out = find_pairs(image_dir, label_dir, suffixes)
    if left_out and not (skip and pairs):
        first, *more = left_out.values()
        also = f" ({len(more)} more have no pair)" if more else ""
        raise ValueError(
            f"{first}{also}. Remedy: mend the folder, or give --on_error=skip, which leaves out "
            "what has no pair if there are others"
        )
    return SourceSplit(name, image_dir, label_dir, pairs, left_out)
