"""The notes on each finished shard, for the manifest and for resuming a conversion."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.facts import SampleFacts
from mapseg.data.shard_checks import Shard
from mapseg.files import write_text
from mapseg.stored_json import read_checked_json, with_sha256

PARTS_DIR = ".parts"


@dataclass(frozen=True)
class Part:
    """The notes on a finished shard, for the manifest and for resuming a conversion.

    Attributes:
      shard: the file.
      facts: the facts of its samples, in order.
      left_out: the reason for each pair that could not be converted, by key.
      made_from: as in its job.
    """

    shard: Shard
    facts: tuple[SampleFacts, ...]
    left_out: dict[str, str]
    made_from: dict[str, Any]


def part_path(shard_path: Path) -> Path:
    """Returns the path of a shard's part."""
    return shard_path.parent / PARTS_DIR / f"{shard_path.name}.json"


def write_part(shard_path: Path, part: Part) -> None:
    """Writes a shard's part atomically."""
    facts = [sample.to_json() for sample in part.facts]
    raw = {**vars(part), "shard": vars(part.shard), "facts": facts}
    write_text(part_path(shard_path), json.dumps(with_sha256(raw)))


def read_part(shard_path: Path) -> Part | None:
    """Reads a shard's part; returns None if it is missing or damaged."""
    raw = read_checked_json(part_path(shard_path))
    if raw is None:
        return None
    facts = tuple(SampleFacts.from_json(sample) for sample in raw["facts"])
    return Part(Shard(**raw["shard"]), facts, raw["left_out"], raw["made_from"])
