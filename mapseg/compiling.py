"""XLA's settings, and a persistent cache of its programs and autotuning results."""

import contextlib
import hashlib
import importlib.metadata
import os
import stat
import sys
import time
from pathlib import Path

from mapseg.files import expand_home
from mapseg.machine import hardware

# The TensorFlow of mapseg[addons] has no autotuning cache; XLA aborts on an unknown flag.
_NO_AUTOTUNE_CACHE = ("2.15", "unknown")
_MOST_BYTES = 2_000_000_000
# Newer files may be in use: file systems may update access times only once a day.
_KEPT_SECS = 25 * 3600


def default_cache_dir() -> Path:
    """Returns the default folder for compiled programs, in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "mapseg" / "compiled"


def use_compile_cache(folder: Path) -> None:
    """Makes XLA cache compiled programs, and the fastest kernels it measured, in a folder.

    Each TensorFlow version and kind of machine has its own subfolder: XLA identifies a program only
    by its computation and whether it is for a CPU or a GPU, and one for other instructions crashes.
    Machines may share a home folder.

    Appends to this process's environment variables, after the user's values; TensorFlow reads them
    on import. Above 2 GB in total, the least recently used files are deleted, except those used in
    the last day.

    Args:
      folder: created if missing; must be on a disk, and may be deleted at any time.

    Raises:
      OSError: the folder cannot be created or written to.
      RuntimeError: TensorFlow is already imported.
    """
    if "tensorflow" in sys.modules:
        raise RuntimeError("use_compile_cache must be called before TensorFlow is imported")
    try:
        version = importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:  # a nightly or vendor build
        version = "unknown"
    kind = hashlib.sha256(hardware().encode()).hexdigest()[:12]
    folder = expand_home(str(folder)).absolute() / f"tensorflow-{version}-{kind}"
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
    if version.startswith("2.15"):  # it cannot reload its CPU programs
        _add("TF_XLA_FLAGS", "--tf_xla_persistent_cache_device_types", "GPU")
    if not version.startswith(_NO_AUTOTUNE_CACHE):
        _add("XLA_FLAGS", "--xla_gpu_per_fusion_autotune_cache_dir", str(kernels))
    # XLA times kernels while it compiles; lazy loading would distort the times and slow it down.
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")


def skip_slow_fusions() -> None:
    """Makes XLA keep convolutions apart from their biases; call it before XLA first compiles."""
    # Autotuning a fused one took 33 to 49 s on an H100, another convolution 0.2 s.
    _add("XLA_FLAGS", "--xla_disable_hlo_passes", "cudnn-fused-convolution-rewriter")


def _evict(folder: Path) -> None:
    """Limits the cache size across TensorFlow versions; other processes may be using it."""
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
