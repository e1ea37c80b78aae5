"""What is noted beside each finished shard, for the manifest and a resumed conversion."""

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
    """What is noted beside a finished shard, for the manifest and for a resumed conversion.

    Attributes:
      shard: the file.
      facts: of its samples, in order.
      left_out: by key of a pair that could not be converted, the reason.
      made_from: as in its job.
    """

    shard: Shard
    facts: tuple[SampleFacts, ...]
    left_out: dict[str, str]
    made_from: dict[str, Any]


def part_path(shard_path: Path) -> Path:
    """Returns where a shard's part is noted."""
    return shard_path.parent / PARTS_DIR / f"{shard_path.name}.json"


def write_part(shard_path: Path, part: Part) -> None:
    """Writes a shard's part, whole or not at all."""
    facts = [found.to_json() for found in part.facts]
    raw = {**vars(part), "shard": vars(part.shard), "facts": facts}
    write_text(part_path(shard_path), json.dumps(with_sha256(raw)))


def read_part(shard_path: Path) -> Part | None:
    """Reads a shard's part; None where there is none, or it is damaged."""
    raw = read_checked_json(part_path(shard_path))
    if raw is None:
        return None
    facts = tuple(SampleFacts.from_json(found) for found in raw["facts"])
    return Part(Shard(**raw["shard"]), facts, raw["left_out"], raw["made_from"])
