"""Files: written whole or not at all, locked, checked, found below a folder."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder that becomes `path` when the block succeeds.

    If the block raises, `path` is as it was and the temporary file is gone. Missing folders are
    made. The temporary name keeps the suffix, since many writers choose the format by it.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_dir(path: Path) -> Iterator[Path]:
    """The same for a folder; one that already has the name is replaced."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            former = path.with_name(f".{path.name}.{os.getpid()}.former.partial")
            if path.exists():
                path.replace(former)
            partial.replace(path)
            shutil.rmtree(former, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def walk(root: Path) -> Iterator[Path]:
    """Yields the files below a folder in order of their names, folders after files.

    Links to folders are followed, but not back to a folder that they lie in. Hidden files and
    folders are skipped.

    Raises:
      OSError: a folder cannot be listed; what is in it would be missing without a word.
    """
    yield from _walk(root, frozenset())


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = above | {folder.resolve()}
    try:
        entries = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise OSError(
            f"{folder}: the folder must be readable; got: {error.strerror}. Remedy: allow reading "
            "it, or move it elsewhere"
        ) from error
    yield from (path for path in entries if not path.is_dir())
    for path in entries:
        if path.is_dir() and path.resolve() not in here:
            yield from _walk(path, here)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    write_bytes(path, text.encode())


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[None]:
    """Holds a lock file; the lock ends with the process, however that ends.

    Args:
      path: the lock file; it stays.
      refusal: the message where another process holds it; empty: wait until it does not.

    Raises:
      ValueError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file that was being written, and the remedy, to an OSError."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written: {error.strerror or error}. Remedy: free some space or "
            "name another folder, and run the same command again"
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def with_sha256(raw: dict[str, Any]) -> dict[str, Any]:
    """Adds to JSON the checksum of its fields, as the last of them."""
    return {**raw, "sha256": hashlib.sha256(json.dumps(raw).encode()).hexdigest()}


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """Reads what `with_sha256` made; None where there is no such file, or it is damaged."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return raw if has_sha256(raw) else None


def has_sha256(raw: Any) -> bool:
    """Returns whether JSON is as `with_sha256` made it."""
    if not isinstance(raw, dict):
        return False
    return raw == with_sha256({name: raw[name] for name in raw if name != "sha256"})
