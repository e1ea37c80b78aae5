"""The content of a records folder: splits, shards, classes, and tables of the ids in label tiles.

A records folder has `<split>-00003-of-00010.tfrecord` shards, `manifest.json`, and for each split a
table of its label tiles. Damaged files are detected by their checksums.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.data.shard_checks import REINDEX, Shard, check_size
from mapseg.data.tiles import TileTable, read_tile_table
from mapseg.files import write_text
from mapseg.labels import LabelClass, parse_class_table
from mapseg.stored_json import has_sha256, with_sha256

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"

_CONVERT = "python -m data_prep.build_records --vistas_dir=DIR --records_dir="
_MANIFEST_REMEDY = (
    "Remedy: remove the file, and run the command that wrote it (data_prep.build_records, for "
    "each split, or index_records) as before: intact shards are kept"
)
NOTES_REMEDY = (
    "Remedy: run data_prep.build_records as before, which writes the file again; but if another "
    f"tool wrote the shards, {REINDEX}"
)


@dataclass(frozen=True)
class Split:
    """The samples of one split, in stored order over its shards.

    Attributes:
      name: such as training.
      shards: in order.
      pixels: number of pixels in the stored labels, by source class name.
      sizes: number of samples by stored (height, width).
      options: how it was made: folders, label version, resizing.
      tile_table: name of the file that lists the source ids in each label tile.
      tile_table_sha256: of that file.
      made_upright: keys of images that were turned according to their EXIF orientation.
      kept_turned: keys of images whose EXIF orientation contradicts their label; stored unchanged.
      left_out: by key, the reason why a pair could not be converted.
    """

    name: str
    shards: tuple[Shard, ...]
    pixels: dict[str, int]
    sizes: dict[tuple[int, int], int]
    options: dict[str, Any]
    tile_table: str
    tile_table_sha256: str
    made_upright: tuple[str, ...] = ()
    kept_turned: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def indexed(self) -> bool:
        """Whether the shards were written by another tool and indexed by index_records."""
        return bool(self.options.get("indexed"))

    @property
    def samples(self) -> int:
        """Number of samples in the split."""
        return sum(shard.samples for shard in self.shards)

    @property
    def long_side_px(self) -> int:
        """Median of the samples' longer sides."""
        return int(np.median(np.repeat([max(s) for s in self.sizes], list(self.sizes.values()))))

    @property
    def digest(self) -> str:
        """Hash of the shards' bytes and their order."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON that `from_json` reads."""
        return {
            "samples": self.samples,
            "options": self.options,
            "sizes": {f"{height}x{width}": n for (height, width), n in self.sizes.items()},
            "made_upright": list(self.made_upright),
            "kept_turned": list(self.kept_turned),
            "left_out": self.left_out,
            "pixels": self.pixels,
            "tile_table": self.tile_table,
            "tile_table_sha256": self.tile_table_sha256,
            "shards": [vars(shard) for shard in self.shards],
        }

    @classmethod
    def from_json(cls, name: str, raw: dict[str, Any]) -> "Split":
        """Rebuilds a split from the result of `to_json`."""
        sizes = {text.partition("x")[::2]: int(n) for text, n in raw["sizes"].items()}
        return cls(
            name=name,
            shards=tuple(Shard(**shard) for shard in raw["shards"]),
            pixels=dict(raw["pixels"]),
            sizes={(int(height), int(width)): n for (height, width), n in sizes.items()},
            options=dict(raw["options"]),
            tile_table=str(raw["tile_table"]),
            tile_table_sha256=str(raw["tile_table_sha256"]),
            made_upright=tuple(raw["made_upright"]),
            kept_turned=tuple(raw["kept_turned"]),
            left_out=dict(raw["left_out"]),
        )


@dataclass(frozen=True)
class Manifest:
    """The content of a records folder.

    Attributes:
      records_dir: the folder; not stored in the file.
      mapseg_version: the version that wrote it.
      classes: the source's class table, by ascending id.
      splits: by name.
      skipped: by name, the reason why a split of the source was not converted.
    """

    records_dir: Path
    mapseg_version: str
    classes: tuple[LabelClass, ...]
    splits: dict[str, Split]
    skipped: dict[str, str]

    def split(self, name: str) -> Split:
        """Returns a split by name.

        Raises:
          ValueError: these records have no such split.
        """
        if name not in self.splits:
            reason = f" ({name} was skipped: {self.skipped[name]})" if name in self.skipped else ""
            raise ValueError(
                f"{self.records_dir}: split must be one of {', '.join(self.splits)}; got "
                f"{name}{reason}. Remedy: choose another split, or convert it"
            )
        return self.splits[name]

    def shard_paths(self, split: str) -> tuple[Path, ...]:
        """Returns the shards of a split, in order.

        Raises:
          ValueError: these records have no such split.
        """
        return tuple(self.records_dir / shard.file for shard in self.split(split).shards)

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON that `from_json` reads."""
        return with_sha256(
            {
                "format_version": FORMAT_VERSION,
                "mapseg_version": self.mapseg_version,
                "splits": {name: split.to_json() for name, split in sorted(self.splits.items())},
                "skipped": self.skipped,
                "labels": [c.to_json() for c in self.classes],
            }
        )

    @classmethod
    def from_json(cls, raw: Any, path: Path) -> "Manifest":
        """Rebuilds a manifest from the result of `to_json`, read from a path.

        Raises:
          ValueError: another format version, or content that was changed since it was written.
        """
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            age = "an older" if version < FORMAT_VERSION else "a newer"
            raise ValueError(
                f"{path}: format_version must be {FORMAT_VERSION}; got {version}, of {age} "
                "mapseg. Remedy: convert again into another folder, or use the mapseg that wrote it"
            )
        if not has_sha256(raw):
            raise ValueError(
                f"{path}: must be as it was written; its checksum differs. {_MANIFEST_REMEDY}"
            )
        place = "its head"
        try:
            version, skipped, splits = raw["mapseg_version"], dict(raw["skipped"]), {}
            for name, split in raw["splits"].items():
                place = f"splits.{name}"
                splits[name] = Split.from_json(name, split)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            missing = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}: {place} must be as mapseg wrote it; got {missing}. {_MANIFEST_REMEDY}"
            ) from error
        classes = parse_class_table(raw, str(path))
        return cls(path.parent, str(version), classes, splits, skipped)


def read_manifest(records_dir: Path | str, check_shards: bool = True) -> Manifest:
    """Reads the manifest of a records folder.

    Args:
      records_dir: the folder that `data_prep.build_records` wrote.
      check_shards: whether every shard must exist and have its recorded size.

    Raises:
      FileNotFoundError: the manifest or a shard is missing.
      ValueError: a manifest of another format version, or changed since it was written; a shard
        of another size.
    """
    records_dir = Path(records_dir)
    path = records_dir / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{records_dir}: must be a folder of finished records; it has no {MANIFEST_NAME}. "
            f"Remedy: {_CONVERT}{records_dir}"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must be a JSON file; {error}. {_MANIFEST_REMEDY}") from error
    manifest = Manifest.from_json(raw, path)
    if check_shards:
        for shard in (shard for split in manifest.splits.values() for shard in split.shards):
            check_size(records_dir / shard.file, shard.bytes)
    return manifest


def write_manifest(manifest: Manifest) -> None:
    """Writes `manifest.json` into its records folder atomically."""
    write_text(
        manifest.records_dir / MANIFEST_NAME, json.dumps(manifest.to_json(), indent=1) + "\n"
    )


def read_split_tiles(manifest: Manifest, split: str) -> TileTable:
    """Reads the table of the source ids in each label tile of a split.

    Raises:
      FileNotFoundError: the table is missing.
      ValueError: an unknown split, or a table that was changed since it was written.
    """
    content = manifest.split(split)
    path = manifest.records_dir / content.tile_table
    return read_tile_table(path, content.tile_table_sha256, NOTES_REMEDY)


def tile_table_name(split: str) -> str:
    """Returns the file name of a split's table of tiles."""
    return f"{split}-tiles.npz"


def shard_name(split: str, number: int, count: int) -> str:
    """Returns the file name of shard `number` (from 0) of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}.tfrecord"
