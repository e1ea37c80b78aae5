"""Finds the image/label pairs of a dataset on disk, without opening an image or a label.

Supports Mapillary Vistas, flat (v1.2) and nested (v2.0), Cityscapes, and any two folders of images
and labels.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from mapseg.data.pairing import Pair, Suffixes, find_pairs, listing
from mapseg.labels import LabelClass, read_class_table

# Possible paths of the class table and of a split's labels, by label version. The first version
# in the folder is used: published scores and the runs of 2018 use v1.2.
_TABLES = {"v1.2": ("config_v1.2.json", "config.json"), "v2.0": ("config_v2.0.json",)}
_LABEL_DIRS = {"v1.2": ("v1.2/labels", "labels"), "v2.0": ("v2.0/labels",)}

# Split names of records, which the options of training have as defaults, by Cityscapes' own.
_CITYSCAPES_SPLITS = {"train": "training", "val": "validation"}
_CITYSCAPES_SUFFIXES = Suffixes("_leftImg8bit.png", "_gtFine_labelIds.png")
_CITYSCAPES_TABLE = Path(__file__).with_name("cityscapes_34.json")


@dataclass(frozen=True)
class SourceSplit:
    """The pairs of one split by ascending key, and the reason for each unpaired file by key."""

    name: str
    image_dir: Path
    label_dir: Path
    pairs: tuple[Pair, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,199}", self.name):
            raise ValueError(
                "split must be at most 200 letters, digits, '_', '.' and '-', the last two not at "
                f"the beginning; got {self.name}"
            )


@dataclass(frozen=True)
class Source:
    """A dataset to convert.

    Attributes:
      classes: its class table.
      splits: those that have labels.
      skipped: the reason for each split without labels, by name.
      label_version: of Vistas; empty for plain folders.
      other_versions: label versions of Vistas that exist but are not used.
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
    """Finds a split in two folders, where image and label have the same relative path and stem.

    Args:
      image_dir: JPEG or PNG images, also in sub-folders.
      label_dir: PNG labels, under the same relative paths.
      classes_path: the class table.
      split: its name.
      skip: leaves out files without a partner, instead of an error.
      suffixes: how the names of images and labels end.

    Raises:
      FileNotFoundError: a folder or the class table does not exist.
      ValueError: a missing partner, or an invalid class table.
    """
    classes = read_class_table(classes_path)
    source_split = _find_split(split, image_dir, label_dir, skip, suffixes)
    return Source(classes, (source_split,), skipped={})


def find_vistas(vistas_dir: Path, label_version: str = "", skip: bool = False) -> Source:
    """Finds the splits of a Mapillary Vistas folder.

    Args:
      vistas_dir: contains `config_*.json` and, for each split, `images` next to `labels` or
        `<version>/labels`.
      label_version: v1.2 or v2.0; empty uses the one that exists, v1.2 if both do.
      skip: leaves out files without a partner, instead of an error.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the folder has another layout, lacks that version, or a partner is missing.
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
            f"{vistas_dir}: must contain SPLIT/images, SPLIT/labels (or SPLIT/v2.0/labels) and "
            f"config_v1.2.json, config_v2.0.json or config.json; got {listing(vistas_dir)}. "
            "Remedy: give the folder that contains training/ and validation/, or --image_dir, "
            "--label_dir and --classes"
        )
    version = label_version or next(iter(tables))
    if version not in tables:
        raise ValueError(
            f"{vistas_dir}: label_version must be one that exists here, {' or '.join(tables)}; "
            f"got {version}"
        )
    source_splits, skipped = [], {}
    for name in splits:
        image_dir, label_dir = vistas_dir / name / "images", _label_dir(vistas_dir / name, version)
        if label_dir is None:
            skipped[name] = f"{vistas_dir / name} has no {version} labels"
            continue
        source_splits.append(_find_split(name, image_dir, label_dir, skip))
    return Source(
        classes=read_class_table(tables[version]),
        splits=tuple(source_splits),
        skipped=skipped,
        label_version=version,
        other_versions=tuple(v for v in tables if v != version),
    )


def find_cityscapes(cityscapes_dir: Path, skip: bool = False) -> Source:
    """Finds the finely annotated splits of Cityscapes: train and val, with label ids.

    The public labels of the test split are dummies, so it is skipped.

    Args:
      cityscapes_dir: contains `leftImg8bit` and `gtFine`, each with SPLIT/CITY/files.
      skip: leaves out files without a partner, instead of an error.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the folder has another layout, or a partner is missing.
    """
    if not cityscapes_dir.is_dir():
        raise FileNotFoundError(f"{cityscapes_dir}: no such folder")
    image_root, label_root = cityscapes_dir / "leftImg8bit", cityscapes_dir / "gtFine"
    folders = [root / split for root in (image_root, label_root) for split in _CITYSCAPES_SPLITS]
    missing = [str(f.relative_to(cityscapes_dir)) for f in folders if not f.is_dir()]
    if missing:
        raise ValueError(
            f"{cityscapes_dir}: must contain leftImg8bit and gtFine, each with train and val; got "
            f"{listing(cityscapes_dir)}, no {missing[0]}. Remedy: unpack "
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there"
        )
    source_splits = tuple(
        _find_split(
            name,
            image_root / split,
            label_root / split,
            skip,
            _CITYSCAPES_SUFFIXES,
            remedy="unpack both archives there again (docs/cityscapes.md)",
        )
        for split, name in _CITYSCAPES_SPLITS.items()
    )
    has_test = (image_root / "test").is_dir()
    skipped = {"test": "its public labels are dummies"} if has_test else {}
    return Source(read_class_table(_CITYSCAPES_TABLE), source_splits, skipped)


def _tables(vistas_dir: Path) -> dict[str, Path]:
    """Returns the existing class tables by label version."""
    paths = {
        version: next((vistas_dir / n for n in names if (vistas_dir / n).is_file()), None)
        for version, names in _TABLES.items()
    }
    return {version: path for version, path in paths.items() if path is not None}


def _label_dir(split_dir: Path, version: str) -> Path | None:
    """Returns the folder with this version's labels; None if it is missing or empty."""
    paths = (split_dir / name for name in _LABEL_DIRS[version])
    return next((path for path in paths if path.is_dir() and any(path.iterdir())), None)


def _find_split(
    name: str,
    image_dir: Path,
    label_dir: Path,
    skip: bool,
    suffixes: Suffixes | None = None,
    remedy: str = "repair the folder",
) -> SourceSplit:
    pairs, left_out = find_pairs(image_dir, label_dir, suffixes)
    if left_out and not (skip and pairs):
        first, *rest = left_out.values()
        count = f" ({len(rest)} more have no pair)" if rest else ""
        if skip:
            raise ValueError(f"{first}{count}; there is no pair at all. Remedy: {remedy}")
        raise ValueError(
            f"{first}{count}. Remedy: {remedy}, or give --on_error=skip, which leaves out files "
            "without a pair if there are any pairs"
        )
    return SourceSplit(name, image_dir, label_dir, pairs, left_out)
