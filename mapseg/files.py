"""Files: written whole or not at all, locked, checked, found below a folder."""

import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapseg.progress import show

_AGAIN = "and run the same command again"
_FULL = f"free some space or name another folder, {_AGAIN}"
_FORBIDDEN = f"name a folder that you may write to, {_AGAIN}"
_NO_FOLDER = f"remove or rename the file that stands where a folder is needed, {_AGAIN}"
_TOO_MANY_OPEN = f"raise the limit of open files (ulimit -n), {_AGAIN}"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: f"remove or rename the folder that has the file's name, {_AGAIN}",
    errno.ENAMETOOLONG: f"a shorter name, or a folder with a shorter path, {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) or name another folder, {_AGAIN}",
    errno.EMFILE: _TOO_MANY_OPEN,
    errno.ENFILE: _TOO_MANY_OPEN,
}
_OTHER_REMEDY = f"check the disk or the share that it lies on, or name another folder, {_AGAIN}"
# What flock says where the file system has no locks: Lustre, some NFS, some of FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


class WriteError(OSError):
    """A file that cannot be written; the message names it, the cause and the remedy."""

    def __init__(self, number: int | None, message: str):
        """Takes the number of the cause, of `errno`, and the whole message."""
        super().__init__(number, message)

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder that becomes `path` when the block succeeds.

    If the block raises, `path` is as it was and the temporary file is gone. Missing folders are
    made. The temporary name keeps the suffix, since many writers choose the format by it.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with naming(path, partial):
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
    with naming(path, partial):
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

    On a file system without locks it holds nothing, and says so once for each folder.

    Args:
      path: the lock file; it stays.
      refusal: the message where another process holds it; empty: wait until it does not.

    Raises:
      ValueError: another process holds it.
      WriteError: the file cannot be made.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise write_error(path, error) from error
            _warn_without_locks(path.parent, error.strerror)
        yield


@functools.cache
def _warn_without_locks(folder: Path, cause: str) -> None:
    show(
        f"WARNING: {folder}: its file system has no locks ({cause}): nothing keeps a second "
        "process from writing here at the same time. Start one at a time"
    )


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Adds the file that was being written, the cause and the remedy to an OSError.

    An error of another file, such as one that was read meanwhile, passes as it is.

    Args:
      path: the file.
      partial: its temporary name.

    Raises:
      WriteError: an OSError of this file.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if not _is_of(error, path, partial or path):
            raise
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> WriteError:
    """Makes of what the system said an error that names the file and the remedy."""
    remedy = _REMEDIES.get(error.errno or 0, _OTHER_REMEDY)
    text = f"{path}: cannot be written: {error.strerror or error}. Remedy: {remedy}"
    return WriteError(error.errno, text)


def _is_of(error: OSError, path: Path, partial: Path) -> bool:
    """Whether an error is of a file, its temporary one, what is in that, or a folder above."""
    if error.filename is None:
        return error.errno is not None  # else it was not the system that raised it
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True  # a number: an open file
    name = Path(os.fsdecode(error.filename))
    return name in (path, partial, *path.parents) or partial in name.parents


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      remedy: where it is damaged; a clause.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON in UTF-8; the message has the place.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(
            f"{path}: must be JSON, as it was written; got at {place}. Remedy: {remedy}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: must be UTF-8, as it was written; byte {error.start} is not. Remedy: {remedy}"
        ) from error


def read_field(raw: Any, name: str, kind: type, origin: Path, remedy: str) -> Any:
    """Returns a field of a JSON object, if it is of its type.

    Args:
      raw: the object, as it was read.
      name: of the field.
      kind: bool, int, float (which a whole number is too), str, list or dict.
      origin: the file that it came from.
      remedy: where it is damaged; a clause.

    Raises:
      ValueError: no object, no such field, or a value of another type.
    """
    if not isinstance(raw, dict) or name not in raw:
        got = "nothing of that name" if isinstance(raw, dict) else f"{raw!r:.100}"
        raise ValueError(f"{origin}: {name} must be there; got {got}. Remedy: {remedy}")
    value = raw[name]
    if not is_of_type(value, kind):
        raise ValueError(
            f"{origin}: {name} must be {TYPE_NAMES[kind]}; got {value!r:.100}. Remedy: {remedy}"
        )
    return value


TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def is_of_type(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a type; true is no number, and a whole number is a float."""
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))


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
