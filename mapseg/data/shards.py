"""TFRecord files: reading and writing records, and the positions of records in them."""

import hashlib
import os
import resource
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from mapseg.data.manifest import Manifest
from mapseg.data.shard_checks import SHARD_REMEDY, Shard, refuse_compressed
from mapseg.files import whole_file

_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # length and its CRC; CRC of the data
_SHARDS_AT_ONCE = 32  # whose headers are read in parallel
_OPEN_SHARE = 8  # an index keeps open at most 1/8 of the files that the process may open


def write_shard(path: Path, records: Iterable[bytes]) -> Shard:
    """Writes a TFRecord file atomically.

    Args:
      path: the shard.
      records: each encoded by `encode_sample`.

    Returns:
      The shard's name, counts and checksum.
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


class _OpenShards:
    """Keeps the most recently read shards open, up to a limit. Thread-safe."""

    def __init__(self, paths: Sequence[Path], limit: int) -> None:
        self._limit = limit
        self._paths = paths
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}  # by shard, the most recently read last
        self._readers: dict[int, int] = {}  # number of readers of each shard in use

    @contextmanager
    def opened(self, shard: int) -> Iterator[int]:
        """Yields the descriptor of a shard, which stays open during the block."""
        with self._lock:
            descriptor = self._descriptors.pop(shard, None)
            if descriptor is None:
                descriptor = os.open(self._paths[shard], os.O_RDONLY)
            self._descriptors[shard] = descriptor
            self._readers[shard] = self._readers.get(shard, 0) + 1
        try:
            yield descriptor
        finally:
            with self._lock:
                self._readers[shard] -= 1
                if not self._readers[shard]:
                    del self._readers[shard]
                if len(self._descriptors) > self._limit:
                    idle = [i for i in self._descriptors if i not in self._readers]
                    for i in idle[: len(self._descriptors) - self._limit]:
                        os.close(self._descriptors.pop(i))

    def close(self) -> None:
        """Closes all shards."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])


@dataclass(frozen=True, eq=False)
class RecordIndex:
    """The position of each record of a split. Keeps shards open as long as it lives.

    Attributes:
      paths: of the shards.
      files: the shards that are open for reading.
      shard: [records] int32, index in `paths`.
      offset: [records] int64, first byte of the record's data.
      length: [records] int64, bytes of the record's data.
    """

    paths: tuple[Path, ...]
    files: _OpenShards
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.shard.nbytes + self.offset.nbytes + self.length.nbytes


def index_split(manifest: Manifest, split: str, keep_open: bool = True) -> RecordIndex:
    """Indexes every record of a split, in stored order, from the headers in its shards.

    Args:
      manifest: of the records.
      split: one of its splits.
      keep_open: whether recently read shards stay open, up to a limit, as long as the index lives.

    Raises:
      FileNotFoundError: a shard is missing.
      ValueError: an unknown split, or a shard that is truncated or damaged.
    """
    shards, paths = manifest.split(split).shards, manifest.shard_paths(split)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    max_open = len(paths) if limit < 0 else max(limit // _OPEN_SHARE, 1)  # below 0: no limit
    # In parallel: the headers of 18,000 records are that many round trips to a network disk.
    with ThreadPoolExecutor(min(_SHARDS_AT_ONCE, max_open)) as pool:
        spans_by_shard = list(pool.map(_read_spans, paths))
    for path, shard, spans in zip(paths, shards, spans_by_shard, strict=True):
        if len(spans) != shard.samples:
            raise ValueError(
                f"{path}: must have {shard.samples} records; got {len(spans)}. {SHARD_REMEDY}"
            )
    all_spans = [span for spans in spans_by_shard for span in spans]
    offset, length = np.array(all_spans, np.int64).reshape(-1, 2).T
    counts = [len(spans) for spans in spans_by_shard]
    shard_number = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    files = _OpenShards(paths, max_open if keep_open else 0)
    index = RecordIndex(paths, files, shard_number, offset, length)
    # Not at exit: reader threads may outlive the main thread.
    weakref.finalize(index, files.close).atexit = False
    return index


def read_record(index: RecordIndex, i: int) -> bytes:
    """Reads record `i` of a split and checks its checksum. Thread-safe.

    Raises:
      ValueError: the data does not match its checksum, or is truncated.
    """
    shard = int(index.shard[i])
    with index.files.opened(shard) as descriptor:
        return _read_span(
            descriptor, index.paths[shard], int(index.offset[i]), int(index.length[i])
        )


def read_shard(path: Path) -> Iterator[bytes]:
    """Reads a shard's records in order and checks their checksums.

    Raises:
      ValueError: the shard is truncated or damaged.
    """
    with path.open("rb") as file:
        for offset, length in _spans(file.fileno(), path):
            yield _read_span(file.fileno(), path, offset, length)


def _read_spans(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(_spans(file.fileno(), path))


def _spans(descriptor: int, path: Path) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) of each record's data."""
    position, end = 0, os.fstat(descriptor).st_size
    while position < end:
        header = os.pread(descriptor, _HEADER_BYTES, position)
        complete = len(header) == _HEADER_BYTES
        if position == 0 and (not complete or header[8:] != _masked_crc(header[:8])):
            refuse_compressed(header, path)
        if complete and header[8:] != _masked_crc(header[:8]):
            raise ValueError(
                f"{path}: damaged: no TFRecord header at byte {position}. {SHARD_REMEDY}"
            )
        length = int.from_bytes(header[:8], "little")
        offset = position + _HEADER_BYTES
        position = offset + length + _FOOTER_BYTES
        if not complete or position > end:
            raise ValueError(f"{path}: truncated at byte {end}, within a record. {SHARD_REMEDY}")
        yield offset, length


def _read_span(descriptor: int, path: Path, offset: int, length: int) -> bytes:
    record = os.pread(descriptor, length, offset)
    if os.pread(descriptor, _FOOTER_BYTES, offset + length) != _masked_crc(record):
        raise ValueError(
            f"{path}: damaged: wrong checksum of the record at byte {offset}. {SHARD_REMEDY}"
        )
    return record
