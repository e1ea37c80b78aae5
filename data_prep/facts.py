"""Facts about each stored sample: recorded during conversion, summarised in the manifest."""

import base64
import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mapseg.data.manifest import Split, tile_table_name
from mapseg.data.shard_checks import Shard
from mapseg.data.tiles import TileTable, count_ids, encode_tile_table, pack_ids
from mapseg.labels import LabelClass

MADE_UPRIGHT, KEPT_TURNED = "made_upright", "kept_turned"


@dataclass(frozen=True, eq=False)
class SampleFacts:
    """Facts about a stored sample.

    Attributes:
      key: the pair's key.
      size: (height, width) as stored.
      pixels: number of pixels by source id, for the ids in the label.
      held: [tiles, 32] uint8, as in `tiles.TileTable`.
      image_sha256: SHA-256 of the stored image's bytes.
      orientation: MADE_UPRIGHT or KEPT_TURNED if the image has an EXIF orientation.
      palette: how the label file's palette contradicts the class table, if it does.
      files_sha256: SHA-256 of the image and the label file that it was made from, if known.
    """

    key: str
    size: tuple[int, int]
    pixels: dict[int, int]
    held: np.ndarray
    image_sha256: str
    orientation: str = ""
    palette: str = ""
    files_sha256: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON that `from_json` reads."""
        held = base64.b64encode(zlib.compress(self.held.tobytes()))
        return {**vars(self), "size": list(self.size), "held": held.decode()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "SampleFacts":
        """Rebuilds facts from the result of `to_json`."""
        held = np.frombuffer(zlib.decompress(base64.b64decode(raw["held"])), np.uint8)
        height, width = raw["size"]
        return cls(
            key=raw["key"],
            size=(height, width),
            pixels={int(source_id): pixels for source_id, pixels in raw["pixels"].items()},
            held=held.reshape(-1, 32),
            image_sha256=raw["image_sha256"],
            orientation=raw["orientation"],
            # Missing in parts of earlier versions.
            palette=raw.get("palette", ""),
            files_sha256=tuple(raw.get("files_sha256", ())),
        )


def note_facts(
    key: str,
    label: np.ndarray,
    image: bytes,
    orientation: str = "",
    palette: str = "",
    files_sha256: tuple[str, ...] = (),
) -> SampleFacts:
    """Collects the facts of a sample from its label [H, W] uint8 and encoded image, as stored."""
    counts = count_ids(label)
    pixels = counts.sum(axis=0)
    return SampleFacts(
        key=key,
        size=(label.shape[0], label.shape[1]),
        pixels={int(i): int(pixels[i]) for i in np.flatnonzero(pixels)},
        held=pack_ids(counts),
        image_sha256=hashlib.sha256(image).hexdigest(),
        orientation=orientation,
        palette=palette,
        files_sha256=files_sha256,
    )


def join_facts(
    name: str,
    shards: Sequence[Shard],
    facts: Sequence[SampleFacts],
    left_out: dict[str, str],
    classes: Sequence[LabelClass],
    options: dict[str, Any],
) -> tuple[Split, bytes]:
    """Summarises a split.

    Args:
      name: the split's name.
      shards: its shards, in order.
      facts: the facts of every sample, in stored order.
      left_out: the reason for each pair that could not be converted, by key.
      classes: the source's class table.
      options: how the split was made.

    Returns:
      The split's entry in the manifest, and the content of its tile table.
    """
    pixels: Counter[int] = Counter()
    for sample in facts:
        pixels.update(sample.pixels)
    table = encode_tile_table(make_tile_table(facts, classes))
    split = Split(
        name=name,
        shards=tuple(shards),
        pixels={c.name: pixels[c.id] for c in classes},
        sizes=dict(sorted(Counter(sample.size for sample in facts).items())),
        options=options,
        tile_table=tile_table_name(name),
        tile_table_sha256=hashlib.sha256(table).hexdigest(),
        made_upright=tuple(f.key for f in facts if f.orientation == MADE_UPRIGHT),
        kept_turned=tuple(f.key for f in facts if f.orientation == KEPT_TURNED),
        left_out=left_out,
    )
    return split, table


def make_tile_table(facts: Sequence[SampleFacts], classes: Sequence[LabelClass]) -> TileTable:
    """Joins the tiles of samples into a table of the ids of a class table."""
    width = max(c.id for c in classes) // 8 + 1  # bytes up to the bit of the highest id
    held = np.concatenate([sample.held for sample in facts])[:, :width]
    return TileTable(np.array([sample.size for sample in facts], np.int32), held)
