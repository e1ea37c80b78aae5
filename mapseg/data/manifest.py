"""The disk format: one sample is one tf.train.Example, in shards beside a manifest.

A records folder holds `<split>-00003-of-00010.tfrecord` shards, `manifest.json`, and for each split
a table of what its label tiles hold. A record has the field names of TF DeepLab: the image as its
own JPEG or PNG bytes, the label as a greyscale PNG of *source* ids; and two of our own, which
others' readers pass over: the label again in tiles (tiles.py), and their size. Label sets are
applied while reading, so one conversion serves them all.

TensorFlow is imported by the two functions that decode: the conversion's workers import this
module to write records, and TensorFlow would cost each of them 5 s and half a gigabyte.
"""

import hashlib
import json
import os
import struct
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from mapseg.data.tiles import TILE_PX, TileTable, read_tile_table
from mapseg.files import whole_file, write_text
from mapseg.labels import LabelClass, LabelSet, make_label_set, parse_class_table

if TYPE_CHECKING:
    import tensorflow as tf

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"

_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # length and its CRC; CRC of the data
_SHARDS_AT_ONCE = 32  # while their headers are read
_PARALLEL_DECODES = 4  # a decoded 12-megapixel sample is 50 MB
_CONVERT = "python -m data_prep.build_records --vistas_dir=DIR --records_dir="
_REINDEX = f"remove {MANIFEST_NAME} and run data_prep.index_records as before"
_MANIFEST_REMEDY = (
    "Remedy: remove the file, and run what wrote it (data_prep.build_records, for each split, or "
    "index_records) as before: shards that are whole are kept"
)
_SHARD_REMEDY = (
    "Remedy: remove the file if it is there, and run data_prep.build_records as before: it makes "
    f"lost shards again; but a shard of another program must be fetched again, then {_REINDEX}"
)
NOTES_REMEDY = (
    "Remedy: run data_prep.build_records as before: it writes the file anew; but if the shards "
    f"are of another program, {_REINDEX}"
)


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name in the records folder, and what it holds."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The samples of one split, in stored order over its shards.

    Attributes:
      name: such as training.
      shards: in order.
      pixels: by name of source class, the pixels of the stored labels.
      sizes: by (height, width) as stored, the samples of that size.
      options: how it was made: folders, label version, resizing.
      tile_table: name of the file that says which source ids each label tile holds.
      tile_table_sha256: of that file.
      made_upright: keys of images that were turned as their EXIF orientation says.
      kept_turned: keys of images whose EXIF orientation contradicts their label: bytes kept.
      left_out: by key of a pair that could not be converted, the reason.
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
        """Whether the shards are another program's, which data_prep.index_records found."""
        return bool(self.options.get("indexed"))

    @property
    def samples(self) -> int:
        """How many samples the split has."""
        return sum(shard.samples for shard in self.shards)

    @property
    def long_side_px(self) -> int:
        """Median over the samples of the longer side."""
        return int(np.median(np.repeat([max(s) for s in self.sizes], list(self.sizes.values()))))

    @property
    def digest(self) -> str:
        """Tells this split's bytes, in their order, apart from others'."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads back."""
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
        """Rebuilds a split that `to_json` wrote."""
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
    """What a records folder holds.

    Attributes:
      mapseg_version: the version that wrote it.
      classes: the source's class table, by ascending id.
      splits: by name.
      skipped: by name of a split of the source that is not here, the reason.
    """

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
                f"split must be one of these records', {', '.join(self.splits)}; got {name}{reason}"
            )
        return self.splits[name]

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads back."""
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
    def from_json(cls, raw: Any, origin: str) -> "Manifest":
        """Rebuilds a manifest that `to_json` wrote.

        Raises:
          ValueError: another format version, or not what was written.
        """
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            age = "an older" if version < FORMAT_VERSION else "a newer"
            raise ValueError(
                f"{origin}: format_version must be {FORMAT_VERSION}; got {version}, of {age} "
                "mapseg. Remedy: convert again into another folder, or use the mapseg that wrote it"
            )
        if not _has_sha256(raw):
            raise ValueError(
                f"{origin}: must be as it was written; its checksum differs. {_MANIFEST_REMEDY}"
            )
        return cls(
            mapseg_version=str(raw["mapseg_version"]),
            classes=parse_class_table(raw, origin),
            splits={name: Split.from_json(name, s) for name, s in raw["splits"].items()},
            skipped=dict(raw["skipped"]),
        )


def read_manifest(records_dir: Path | str, check_shards: bool = True) -> Manifest:
    """Reads what a records folder holds.

    Args:
      records_dir: the folder that `data_prep.build_records` wrote.
      check_shards: whether every shard must be there, at its recorded size.

    Raises:
      FileNotFoundError: no manifest, or a shard is missing.
      ValueError: a manifest of another format version, or not as it was written; a shard of
        another size.
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
    manifest = Manifest.from_json(raw, str(path))
    if check_shards:
        for shard in (shard for split in manifest.splits.values() for shard in split.shards):
            _check_size(records_dir / shard.file, shard.bytes)
    return manifest


def check_shard(path: Path, shard: Shard) -> None:
    """Checks that a shard is the file that was written, byte by byte.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is another.
    """
    _check_size(path, shard.bytes)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            raise ValueError(
                f"{path}: must be as it was written; its sha256 differs. {_SHARD_REMEDY}"
            )


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this shard is missing. {_SHARD_REMEDY}")
    found = path.stat().st_size
    if found != size:
        raise ValueError(f"{path}: must have {size} bytes; got {found}. {_SHARD_REMEDY}")


def write_manifest(records_dir: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into a records folder, whole or not at all."""
    write_text(records_dir / MANIFEST_NAME, json.dumps(manifest.to_json(), indent=1) + "\n")


def with_sha256(raw: dict[str, Any]) -> dict[str, Any]:
    """Adds to JSON the checksum of its fields, as the last of them."""
    return {**raw, "sha256": hashlib.sha256(json.dumps(raw).encode()).hexdigest()}


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """Reads what `with_sha256` made; None where there is no such file, or it is damaged."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return raw if _has_sha256(raw) else None


def _has_sha256(raw: Any) -> bool:
    if not isinstance(raw, dict):
        return False
    return raw == with_sha256({name: raw[name] for name in raw if name != "sha256"})


def read_split_tiles(records_dir: Path | str, split: str) -> TileTable:
    """Reads which source ids each label tile of a split holds.

    Raises:
      FileNotFoundError: no records there, or the table is missing.
      ValueError: an unknown split, or a table that is not the one that was written.
    """
    content = read_manifest(records_dir).split(split)
    path = Path(records_dir) / content.tile_table
    return read_tile_table(path, content.tile_table_sha256, NOTES_REMEDY)


def tile_table_name(split: str) -> str:
    """Returns the file name of a split's table of tiles."""
    return f"{split}-tiles.npz"


def shard_name(split: str, number: int, count: int) -> str:
    """Returns the file name of shard `number` (from 0) of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}.tfrecord"


def write_shard(path: Path, records: Iterable[bytes]) -> Shard:
    """Writes a TFRecord file, whole or not at all.

    Args:
      path: the shard.
      records: each a sample of `encode_sample`.

    Returns:
      What was written.
    """
    digest, samples, size = hashlib.sha256(), 0, 0
    with whole_file(path) as partial, partial.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            for piece in (length, _masked_crc(length), record, _masked_crc(record)):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            samples += 1
    return Shard(path.name, samples, size, digest.hexdigest())


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def encode_sample(
    name: str,
    image: bytes,
    image_format: str,
    size: tuple[int, int],
    channels: int,
    label: bytes,
    tiles: Sequence[bytes],
) -> bytes:
    """Encodes one sample; equal arguments give equal bytes.

    Args:
      name: the sample's key.
      image: an encoded image.
      image_format: jpeg or png.
      size: (height, width) of both image and label.
      channels: of the image.
      label: an 8-bit greyscale PNG of source ids.
      tiles: the label again, as `tiles.encode_tiles` cuts it.

    Returns:
      A serialized tf.train.Example.
    """
    return _example(
        {
            "image/channels": channels,
            "image/encoded": image,
            "image/filename": name.encode(),
            "image/format": image_format.encode(),
            "image/height": size[0],
            "image/segmentation/class/encoded": label,
            "image/segmentation/class/format": b"png",
            "image/segmentation/class/tile_px": TILE_PX,
            "image/segmentation/class/tiles": tiles,
            "image/width": size[1],
        }
    )


def _example(features: dict[str, int | bytes | Sequence[bytes]]) -> bytes:
    # The protobuf wire format of tf.train.Example, whose own serializer needs TensorFlow and
    # orders the features anew in every process.
    entries = (
        _field(1, _field(1, key.encode()) + _field(2, _feature(value)))
        for key, value in features.items()
    )
    return _field(1, b"".join(entries))


def _feature(value: int | bytes | Sequence[bytes]) -> bytes:
    if isinstance(value, int):
        return _field(3, _field(1, _varint(value)))  # Int64List
    values = [value] if isinstance(value, bytes) else value
    return _field(1, b"".join(_field(1, one) for one in values))  # BytesList


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload  # 2: length-delimited


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def decode_image(encoded: "tf.Tensor") -> "tf.Tensor":
    """Decodes a JPEG or PNG to [H, W, 3] uint8 with the exact DCT, as OpenCV does."""
    import tensorflow as tf

    # Despite its name decode_jpeg reads PNG too.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def decode_sample(
    serialized: "tf.Tensor", table: "tf.Tensor"
) -> tuple["tf.Tensor", "tf.Tensor", "tf.Tensor"]:
    """Decodes a record at its stored size; a graph function.

    The JPEG decoder is set to the exact DCT, so training, inference and export see equal pixels.

    Args:
      serialized: [] string, a record of `encode_sample`.
      table: [256] uint8, train id by source id.

    Returns:
      The image [H, W, 3] uint8 (a grey one three times), the label [H, W] uint8 as the table
      gives it, and the key, [] string.
    """
    import tensorflow as tf

    text = tf.io.FixedLenFeature([], tf.string)
    fields = ("image/encoded", "image/segmentation/class/encoded", "image/filename")
    sample = tf.io.parse_single_example(serialized, dict.fromkeys(fields, text))
    image = decode_image(sample[fields[0]])
    source_ids = tf.io.decode_png(sample[fields[1]], channels=1)[..., 0]
    return image, tf.gather(table, tf.cast(source_ids, tf.int32)), sample[fields[2]]


def read_samples(
    records_dir: Path | str,
    split: str,
    label_set: str | LabelSet = "all",
    *,
    first: int = -1,
    share: tuple[int, int] = (0, 1),
) -> "tf.data.Dataset":
    """Reads a split's samples at stored size and in stored order, for evaluation.

    Args:
      records_dir: the folder that `data_prep.build_records` wrote.
      split: one of its splits.
      label_set: a label set, or the name or path of one; see `labels.make_label_set`.
      first: only the first so many; -1 is all.
      share: (i, n), of these only every n-th from the i-th on.

    Returns:
      A dataset of (image [H, W, 3] uint8, label [H, W] uint8 train ids or VOID, key [] string).

    Raises:
      FileNotFoundError: no records there, or a shard is missing.
      ValueError: an unknown split or label set.
    """
    import tensorflow as tf

    manifest = read_manifest(records_dir)
    paths = [str(Path(records_dir) / shard.file) for shard in manifest.split(split).shards]
    if isinstance(label_set, str):
        label_set = make_label_set(manifest.classes, label_set)
    table = label_set.table
    index, shares = share
    return (
        tf.data.TFRecordDataset(paths)
        .take(first)
        .shard(shares, index)
        .map(
            lambda record: decode_sample(record, table),
            num_parallel_calls=_PARALLEL_DECODES,
            deterministic=True,
        )
    )


@dataclass(frozen=True, eq=False)
class RecordIndex:
    """Where each record of a split lies. Holds its shards open as long as it lives.

    Attributes:
      paths: of the shards.
      descriptors: of the shards, open for reading.
      shard: [records] int32, place in `paths`.
      offset: [records] int64, first byte of the record's data.
      length: [records] int64, bytes of the record's data.
    """

    paths: tuple[Path, ...]
    descriptors: tuple[int, ...]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.shard.nbytes + self.offset.nbytes + self.length.nbytes


def index_split(records_dir: Path | str, split: str) -> RecordIndex:
    """Finds every record of a split, in stored order, from the headers in its shards.

    Raises:
      FileNotFoundError: no records there, or a shard is missing.
      ValueError: an unknown split, or a shard that is truncated or broken.
    """
    shards = read_manifest(records_dir).split(split).shards
    paths = tuple(Path(records_dir) / shard.file for shard in shards)
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDONLY))
        # Side by side: the headers of 18,000 records are that many round trips to a network disk.
        with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
            found = list(pool.map(lambda *shard: list(_spans(*shard)), descriptors, paths))
        for path, shard, spans in zip(paths, shards, found, strict=True):
            if len(spans) != shard.samples:
                raise ValueError(
                    f"{path}: must have {shard.samples} records; got {len(spans)}. {_SHARD_REMEDY}"
                )
    except BaseException:
        _close(descriptors)
        raise
    offset, length = np.array([s for spans in found for s in spans], np.int64).reshape(-1, 2).T
    shard_number = np.repeat(np.arange(len(found), dtype=np.int32), [len(s) for s in found])
    index = RecordIndex(paths, tuple(descriptors), shard_number, offset, length)
    # Not at exit: reading threads may outlive the main one.
    weakref.finalize(index, _close, descriptors).atexit = False
    return index


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def read_record(index: RecordIndex, i: int) -> bytes:
    """Reads record `i` of a split, its checksum checked. Any thread may call it.

    Raises:
      ValueError: the data does not match its checksum, or is cut short.
    """
    shard = index.shard[i]
    return _read_span(
        index.descriptors[shard], index.paths[shard], int(index.offset[i]), int(index.length[i])
    )


def read_shard(path: Path) -> Iterator[bytes]:
    """Reads a shard's records in order, every checksum checked.

    Raises:
      ValueError: the shard is truncated or broken.
    """
    with path.open("rb") as file:
        for offset, length in _spans(file.fileno(), path):
            yield _read_span(file.fileno(), path, offset, length)


def _spans(descriptor: int, path: Path) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) of each record's data."""
    position, end = 0, os.fstat(descriptor).st_size
    while position < end:
        header = os.pread(descriptor, _HEADER_BYTES, position)
        whole = len(header) == _HEADER_BYTES
        if whole and header[8:] != _masked_crc(header[:8]):
            raise ValueError(
                f"{path}: broken: no TFRecord header at byte {position}. {_SHARD_REMEDY}"
            )
        length = int.from_bytes(header[:8], "little")
        offset = position + _HEADER_BYTES
        position = offset + length + _FOOTER_BYTES
        if not whole or position > end:
            raise ValueError(f"{path}: truncated at byte {end}, within a record. {_SHARD_REMEDY}")
        yield offset, length


def _read_span(descriptor: int, path: Path, offset: int, length: int) -> bytes:
    record = os.pread(descriptor, length, offset)
    if os.pread(descriptor, _FOOTER_BYTES, offset + length) != _masked_crc(record):
        raise ValueError(
            f"{path}: broken: checksum of the record at byte {offset}. {_SHARD_REMEDY}"
        )
    return record
