"""Files: atomic writes, locks, checks before writing, and recursive listing."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
    errno.ENAMETOOLONG: f"use a shorter name, or a folder with a shorter path, {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) or name another folder, {_AGAIN}",
    errno.EMFILE: _TOO_MANY_OPEN,
    errno.ENFILE: _TOO_MANY_OPEN,
}
_OTHER_REMEDY = f"check the disk or the share that holds it, or name another folder, {_AGAIN}"
# System error texts that libraries quote, such as TensorFlow in its own error classes.
_QUOTED = {os.strerror(number): number for number in (*_REMEDIES, errno.ENOENT, errno.EIO)}
# Errors of flock on file systems without locks: Lustre, some NFS, some FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


class WriteError(OSError):
    """A file that cannot be written; the message names it, the cause and the remedy."""

    def __init__(self, number: int | None, message: str):
        """Stores the `errno` of the cause and the whole message."""
        super().__init__(number, message)

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, renamed to `path` when the block succeeds.

    If the block raises, `path` is unchanged and the temporary file is removed. Missing folders are
    created. The temporary name keeps the suffix, as many writers infer the format from it.
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
    """Writes a folder as `whole_file` does, replacing any old one, or the target of a link."""
    path = path.resolve()
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
    """Yields the files below a folder sorted by name, files before folders.

    Links to folders are followed, except back to a folder that contains them. Hidden files and
    folders are skipped.

    Raises:
      OSError: a folder cannot be listed; skipping it would lose files silently.
    """
    yield from _walk(root, frozenset())


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = above | {folder.resolve()}
    try:
        entries = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise OSError(
            f"{folder}: the folder must be readable; got: {error.strerror}. Remedy: make it "
            "readable, or move it elsewhere"
        ) from error
    yield from (path for path in entries if not path.is_dir())
    for path in entries:
        if path.is_dir() and path.resolve() not in here:
            yield from _walk(path, here)


def nearest_folder(goal: Path) -> Path:
    """Returns a path if it exists, else its nearest existing parent."""
    goal = goal.absolute()
    return next(path for path in (goal, *goal.parents) if path.exists())


def check_writable(folder: Path) -> None:
    """Checks, before long work, that its results can be written to a folder.

    Writes and removes a file there or, if the folder is missing, in its nearest existing parent, so
    that nothing is left.

    Raises:
      WriteError: the folder is not writable, is a file, or its disk is full.
    """
    probe = nearest_folder(folder) / f".probe.{os.getpid()}.partial"
    with naming(folder, probe):
        try:
            probe.write_bytes(b"x")
            _sync(probe)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()


def expand_home(path: str) -> Path:
    """Expands a leading `~` to the home folder; a name like `~backup` is kept."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, Path's needs a home


def name_text(path: Path | str) -> str:
    """Decodes a path as UTF-8, whatever the locale.

    Bytes that are not UTF-8 become surrogates, which cannot be encoded.
    """
    return os.fsencode(path).decode(errors="surrogateescape")


def printable(text: str | Path) -> str:
    r"""Escapes text for UTF-8 tables and terminals: `Z\xfcrich` for a name in Latin-1."""
    text = name_text(text) if isinstance(text, Path) else text
    escaped = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda c: repr(c[0])[1:-1], escaped)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[IO[str]]:
    """Locks a file and yields it; the lock ends when the process does, even if killed.

    On a file system without locks it only prints a warning, once per folder.

    Args:
      path: the lock file; it is not removed.
      refusal: the message if another process holds the lock; empty waits for it.

    Raises:
      ValueError: another process holds the lock.
      WriteError: the file cannot be created.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")  # keeps what the holder wrote
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise write_error(path, error) from error
            _warn_without_locks(path.parent, error.strerror)
        yield file


@functools.cache
def _warn_without_locks(folder: Path, cause: str) -> None:
    show(
        f"WARNING: {folder}: its file system has no locks ({cause}): nothing prevents a second "
        "process from writing here at the same time. Run only one at a time"
    )


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Turns a system error about the file being written into a WriteError with the remedy.

    A system error is an OSError, or an error of TensorFlow that quotes one. Errors about other
    files, such as one being read, propagate.

    Args:
      path: the file.
      partial: its temporary name.

    Raises:
      WriteError: a system error about this file.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if not _is_of(error, path, partial or path):
            raise
        raise write_error(path, error) from error
    except Exception as error:
        if (number := quoted_errno(error)) is None:
            raise
        raise write_error(path, OSError(number, os.strerror(number))) from error


def write_error(path: Path, error: OSError) -> WriteError:
    """Builds a WriteError from a system error: the file, the cause and the remedy."""
    remedy = remedy_of(error.errno)
    text = f"{path}: cannot be written: {error.strerror or error}. Remedy: {remedy}"
    return WriteError(error.errno, text)


def remedy_of(number: int | None) -> str:
    """Returns the remedy for a failed write with this `errno`, as a clause."""
    return _REMEDIES.get(number or 0, _OTHER_REMEDY)


def quoted_errno(error: BaseException) -> int | None:
    """Returns the `errno` of the system error that a TensorFlow error quotes, if any.

    The class is not enough: a full disk, an exceeded quota, too many open files and full device
    memory are all ResourceExhaustedError.
    """
    if not {"OpError", "ResourceExhaustedError"} & {kind.__name__ for kind in type(error).__mro__}:
        return None  # by name: does not import TensorFlow
    match = re.search(rf"(?:^|[;:] )({'|'.join(map(re.escape, _QUOTED))})", str(error))
    return _QUOTED[match[1]] if match else None


def _is_of(error: OSError, path: Path, partial: Path) -> bool:
    """Whether an error is about a path, its temporary path and contents, or a parent."""
    if error.filename is None:
        return error.errno is not None  # without one, not a system error
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True  # a file descriptor
    name = Path(os.fsdecode(error.filename))
    return name in (path, partial, *path.parents) or partial in name.parents


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
