"""Keeps what XLA compiles and measures in a folder, so that the next start need not do it again."""

import contextlib
import importlib.metadata
import os
import stat
import sys
import time
from pathlib import Path

from mapseg.files import expand_home

# The cache of what was measured came after the TensorFlow of mapseg[addons]; XLA ends a program
# that has a flag which it does not know.
_NO_AUTOTUNE_CACHE = ("2.15", "unknown")
_MOST_BYTES = 2_000_000_000
# What a running process has read is at most so old: file systems note the first reading of a day.
_KEPT_SECS = 25 * 3600


def default_cache_dir() -> Path:
    """Returns the folder for compiled programs among the user's caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "mapseg" / "compiled"


def use_compile_cache(folder: Path) -> None:
    """Lets XLA keep compiled programs, and which kernels were the fastest, in a folder.

    It sets variables of the environment, beside what the user has in them, for the whole process;
    TensorFlow reads them when it is imported. Programs of another TensorFlow lie apart; others are
    told by XLA itself from what they compute and on what device. Where all of them take more than
    2 GB, those that were not used for the longest time go first; those of the last day stay.

    Args:
      folder: made if it is not there; it must be on a disk, and may be deleted at any time.

    Raises:
      OSError: the folder cannot be made or written to.
      RuntimeError: TensorFlow was imported before.
    """
    if "tensorflow" in sys.modules:
        raise RuntimeError("use_compile_cache must be called before TensorFlow is imported")
    try:
        version = importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:  # of a nightly or a vendor
        version = "unknown"
    folder = expand_home(str(folder)).absolute() / f"tensorflow-{version}"
    kernels = folder / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{folder}: the folder of compiled programs must be writable; it is not. Remedy: "
            "another --compile_cache_dir"
        )
    _evict(folder.parent)
    _add("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory", str(folder))
    _add("TF_XLA_FLAGS", "--tf_xla_persistent_cache_read_only", "false")
    if version.startswith("2.15"):  # it cannot read what it wrote for a CPU
        _add("TF_XLA_FLAGS", "--tf_xla_persistent_cache_device_types", "GPU")
    if not version.startswith(_NO_AUTOTUNE_CACHE):
        _add("XLA_FLAGS", "--xla_gpu_per_fusion_autotune_cache_dir", str(kernels))
    # XLA times kernels while it compiles; code that is loaded lazily spoils and delays that.
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")


def _evict(folder: Path) -> None:
    """Bounds a cache, all versions of TensorFlow together; other processes may use it meanwhile."""
    entries = []
    for path in folder.glob("tensorflow-*/**/*"):
        with contextlib.suppress(OSError):  # another process has removed it
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                entries.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    total = sum(size for _, size, _ in entries)
    yesterday = time.time() - _KEPT_SECS
    for used, size, path in sorted(entries):
        if total <= _MOST_BYTES or used > yesterday:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _add(variable: str, flag: str, value: str) -> None:
    flags = os.environ.get(variable, "")
    if flag not in flags:
        os.environ[variable] = f'{flags} {flag}="{value}"'.strip()
