"""Files: written whole or not at all, locked, checked, found below a folder."""

import contextlib
import errno
import fcntl
import functools
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
    errno.ENAMETOOLONG: f"a shorter name, or a folder with a shorter path, {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) or name another folder, {_AGAIN}",
    errno.EMFILE: _TOO_MANY_OPEN,
    errno.ENFILE: _TOO_MANY_OPEN,
}
_OTHER_REMEDY = f"check the disk or the share that it lies on, or name another folder, {_AGAIN}"
# What a library quotes of the system, such as TensorFlow in an error of its own classes.
_QUOTED = {os.strerror(number): number for number in (*_REMEDIES, errno.ENOENT, errno.EIO)}
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


def nearest_folder(goal: Path) -> Path:
    """Returns a path that exists, or else the nearest one above it that does."""
    goal = goal.absolute()
    return next(path for path in (goal, *goal.parents) if path.exists())


def check_writable(folder: Path) -> None:
    """Refuses, before long work, a folder into which its results could not be written.

    A file is written there and removed again; where the folder is missing, in the nearest one above
    it, so that nothing new stays behind.

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
    """Puts the home folder in the place of `~`; a name that only begins with it stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, Path's raises where there is no home


def name_text(path: Path | str) -> str:
    """Returns a path as text that is the same in every locale: its bytes are taken for UTF-8.

    Those that are not become surrogates, which cannot be encoded.
    """
    return os.fsencode(path).decode(errors="surrogateescape")


def printable(text: str | Path) -> str:
    r"""Escapes what a UTF-8 table or terminal cannot show: `Z\xfcrich` for a name in Latin-1."""
    text = name_text(text) if isinstance(text, Path) else text
    escaped = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda c: repr(c[0])[1:-1], escaped)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    write_bytes(path, text.encode())


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[IO[str]]:
    """Holds a lock file, and yields it; the lock ends with the process, however that ends.

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
        file = path.open("a")  # what its holder has written there stays
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
        f"WARNING: {folder}: its file system has no locks ({cause}): nothing keeps a second "
        "process from writing here at the same time. Start one at a time"
    )


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Adds the file that was being written, the cause and the remedy to an error of the system.

    That is an OSError, or one of TensorFlow that quotes the system. An error of another file, such
    as one that was read meanwhile, passes as it is.

    Args:
      path: the file.
      partial: its temporary name.

    Raises:
      WriteError: an error of the system with this file.
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
    """Makes of what the system said an error that names the file and the remedy."""
    remedy = remedy_of(error.errno)
    text = f"{path}: cannot be written: {error.strerror or error}. Remedy: {remedy}"
    return WriteError(error.errno, text)


def remedy_of(number: int | None) -> str:
    """Returns what helps where a file cannot be written, by the number of the cause: a clause."""
    return _REMEDIES.get(number or 0, _OTHER_REMEDY)


def quoted_errno(error: BaseException) -> int | None:
    """Returns the number of the system's error that TensorFlow's file systems quote, if they do.

    Their class says little: a full disk, a quota and too many open files are all
    ResourceExhaustedError, as is the memory of a device.
    """
    if not {"OpError", "ResourceExhaustedError"} & {kind.__name__ for kind in type(error).__mro__}:
        return None  # by name: TensorFlow is not imported
    quoted = re.search(rf"(?:^|[;:] )({'|'.join(map(re.escape, _QUOTED))})", str(error))
    return _QUOTED[quoted[1]] if quoted else None


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
