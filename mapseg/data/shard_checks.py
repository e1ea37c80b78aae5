"""What a shard file must be: there, of its size and checksum, and not compressed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

REINDEX = "remove manifest.json and run data_prep.index_records as before"
SHARD_REMEDY = (
    "Remedy: remove the file if it is there, and run data_prep.build_records as before: it makes "
    f"lost shards again; but a shard of another program must be fetched again, then {REINDEX}"
)


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name in the records folder, and what it holds."""

    file: str
    samples: int
    bytes: int
    sha256: str


def check_shard(path: Path, shard: Shard) -> None:
    """Checks that a shard is the file that was written, byte by byte.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is another.
    """
    check_size(path, shard.bytes)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            raise ValueError(
                f"{path}: must be as it was written; its sha256 differs. {SHARD_REMEDY}"
            )


def check_size(path: Path, size: int) -> None:
    """Checks that a shard is there, and has the bytes that were written.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it has another size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this shard is missing. {SHARD_REMEDY}")
    found = path.stat().st_size
    if found != size:
        with path.open("rb") as file:
            refuse_compressed(file.read(2), path)
        raise ValueError(f"{path}: must have {size} bytes; got {found}. {SHARD_REMEDY}")


def refuse_compressed(start: bytes, path: Path) -> None:
    """Refuses a shard that was compressed as a whole: its records cannot be read one by one.

    Args:
      start: its first two bytes or more, which are no TFRecord's.
      path: of the shard.

    Raises:
      ValueError: these are a gzip or zlib file's.
    """
    is_zlib = len(start) > 1 and start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0
    if start.startswith(b"\x1f\x8b") or is_zlib:
        kind = "ZLIB" if is_zlib else "GZIP"
        raise ValueError(
            f"{path}: a shard must not be compressed; got {kind}. Remedy: write the records of "
            f"tf.data.TFRecordDataset(FILE, compression_type='{kind}') anew, with a "
            "tf.io.TFRecordWriter without compression"
        )
