"""Checks that a shard exists, has the recorded size and checksum, and is not compressed."""

from dataclasses import dataclass
from pathlib import Path

from mapseg.files import file_sha256

REINDEX = "remove manifest.json and run data_prep.index_records as before"
SHARD_REMEDY = (
    "Remedy: remove the file if it exists, and run data_prep.build_records as before, which makes "
    f"missing shards again; but if another tool wrote the shard, fetch it again, then {REINDEX}"
)


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name in the records folder, counts and checksum."""

    file: str
    samples: int
    bytes: int
    sha256: str


def check_shard(path: Path, shard: Shard) -> None:
    """Checks that a shard has its recorded size and checksum.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it was changed since it was written.
    """
    check_size(path, shard.bytes)
    if file_sha256(path) != shard.sha256:
        raise ValueError(f"{path}: must be as it was written; its sha256 differs. {SHARD_REMEDY}")


def check_size(path: Path, size: int) -> None:
    """Checks that a shard exists and has its recorded size.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it has another size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this shard is missing. {SHARD_REMEDY}")
    actual = path.stat().st_size
    if actual != size:
        with path.open("rb") as file:
            refuse_compressed(file.read(2), path)
        raise ValueError(f"{path}: must have {size} bytes; got {actual}. {SHARD_REMEDY}")


def refuse_compressed(start: bytes, path: Path) -> None:
    """Rejects a shard compressed as one stream, whose records cannot be read individually.

    Args:
      start: its first bytes, at least two, which are not those of a TFRecord file.
      path: of the shard.

    Raises:
      ValueError: it is a gzip or zlib file.
    """
    is_zlib = len(start) > 1 and start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0
    if start.startswith(b"\x1f\x8b") or is_zlib:
        kind = "ZLIB" if is_zlib else "GZIP"
        raise ValueError(
            f"{path}: a shard must not be compressed; got {kind}. Remedy: write the records of "
            f"tf.data.TFRecordDataset(FILE, compression_type='{kind}') again, with a "
            "tf.io.TFRecordWriter without compression"
        )
