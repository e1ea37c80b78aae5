"""The cores, GPUs and memory of the machine."""

import contextlib
import ctypes
import math
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_NVIDIA_SMI_SECS = 20


@dataclass(frozen=True)
class Gpu:
    """A GPU as TensorFlow sees it.

    Attributes:
      name: of the GPU model.
      capability: (major, minor) compute capability; (0, 0) if unknown.
    """

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class DriverReport:
    """The driver's version, and the memory of a GPU: used by all programs, and total."""

    version: str
    used_mb: int
    total_mb: int


def cores() -> int:
    """Returns how many cores this process may use, by its affinity and its container's quota.

    With more threads than the quota allows, all are throttled for part of every 100 ms.
    """
    all_cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else all_cores
    return max(math.ceil(min([allowed, *_cpu_quotas()])), 1)


def _cpu_quotas() -> list[float]:
    """Returns the CPU limits of this process's control groups, v1 or v2."""
    quotas = []
    for folder in _control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit
            quota, period = (folder / "cpu.max").read_text().split()  # v2; "max" is no limit
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
            if int(quota) > 0:  # v1; -1 is no limit
                quotas.append(int(quota) / int(period))
    return quotas


def _control_groups(controller: str) -> list[Path]:
    """Returns the folders of this process's control groups and their parents."""
    mount = Path("/sys/fs/cgroup")
    groups = [(mount, "/"), (mount / controller, "/")]  # a container sees its own group as the root
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                groups.append((mount, group))
            elif controller in controllers.split(","):
                groups.append((mount / controller, group))
    folders = []
    for folder, group in groups:
        inner = folder / group.lstrip("/")
        folders += [inner, *(outer for outer in inner.parents if folder in (outer, *outer.parents))]
    return folders


def gpus() -> list[Gpu]:
    """Returns the GPUs that TensorFlow can use."""
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(device) for device in devices]
    return [
        Gpu(detail.get("device_name", "GPU"), detail.get("compute_capability", (0, 0)))
        for detail in details
    ]


def hardware() -> str:
    """Describes what compiled programs depend on, without TensorFlow.

    Returns:
      A line with the CPU's instruction sets, then the models of the GPUs, as far as known.
    """
    lines = []
    with contextlib.suppress(OSError):
        cpu = Path("/proc/cpuinfo").read_text()
        lines += re.findall(r"^(?:flags|Features)\s*: (.*)", cpu, re.M)[:1]  # x86, ARM
    models = set()
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        with contextlib.suppress(OSError):
            models.update(re.findall(r"^Model:\s*(.*)", path.read_text(), re.M))
    return "\n".join([*lines, *sorted(models)])


def has_nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA driver, hence a GPU, visible to TensorFlow or not."""
    return Path("/proc/driver/nvidia/version").exists()


def driver_reports() -> list[DriverReport]:
    """Queries nvidia-smi for each GPU of the machine; empty if it fails."""
    query = "--query-gpu=driver_version,memory.used,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = re.findall(r"^(\S+), (\d+), (\d+)$", done.stdout, re.M)
    return [DriverReport(version, int(used), int(total)) for version, used, total in rows]


def hidden_gpu(reports: Sequence[DriverReport] = ()) -> str:
    """Returns a message if the machine has a GPU that TensorFlow cannot see; else empty.

    Args:
      reports: from `driver_reports`, if available.
    """
    if gpus() or not (reports or has_nvidia_driver()):
        return ""
    return (
        "this machine has an NVIDIA GPU that TensorFlow cannot see; training runs on the CPU, tens "
        "of times slower. Remedy: pip install 'mapseg[cuda]'; check that nvidia-smi works, and "
        "that CUDA_VISIBLE_DEVICES does not hide it"
    )


def available_bytes() -> int:
    """Returns how much more memory this process may use, on the machine and in its container."""
    try:
        kilobytes = re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        available = int(kilobytes[0]) * 1024
    except (OSError, IndexError):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _control_groups("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),  # v1
        ):
            with contextlib.suppress(OSError, ValueError):  # no such group, or no limit
                limit = int((group / limit_name).read_text())
                stat = (group / "memory.stat").read_text()
                cached = re.findall(r"^(?:total_)?inactive_file (\d+)", stat, re.M)
                used = int((group / used_name).read_text()) - max(map(int, cached), default=0)
                available = min(available, limit - used)
    return available


def used_bytes(which: Literal["current", "peak"]) -> int:
    """Returns the memory in use: by TensorFlow on the first GPU or, with no GPU, by the process.

    Args:
      which: the current use, or the peak since the start or `reset_peak`.

    Returns:
      Bytes; 0 if the system does not report it.
    """
    if gpus():
        import tensorflow as tf

        return int(tf.config.experimental.get_memory_info("GPU:0")[which])
    return process_bytes(which)


def process_bytes(which: Literal["current", "peak"]) -> int:
    """Returns the resident memory of this process; 0 if the system does not report it."""
    name = {"current": "VmRSS", "peak": "VmHWM"}[which]
    with contextlib.suppress(OSError):
        kilobytes = re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(kilobytes[0]) * 1024
    return 0


def allocated_bytes(which: Literal["current", "peak"]) -> int:
    """Returns the memory that TensorFlow has allocated on the first GPU or, with none, on the CPU.

    With oneDNN, TensorFlow pools freed CPU memory: the process neither shrinks after a step nor
    grows in the next. Without oneDNN there is no pool, and no statistics.

    Args:
      which: as for `used_bytes`, the fallback without statistics.

    Returns:
      Bytes.
    """
    import tensorflow as tf

    if not gpus():
        with contextlib.suppress(ValueError):
            return int(tf.config.experimental.get_memory_info("CPU:0")[which])
    return used_bytes(which)


def reset_peak() -> None:
    """Resets the peaks of `used_bytes` and `allocated_bytes`, if the system supports it."""
    import tensorflow as tf

    if gpus():
        tf.config.experimental.reset_memory_stats("GPU:0")
    else:
        with contextlib.suppress(ValueError):
            tf.config.experimental.reset_memory_stats("CPU:0")
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system
            Path("/proc/self/clear_refs").write_text("5")


def gpu_limit_bytes() -> int:
    """Returns how much of each GPU's memory TensorFlow may use; 0 without a GPU."""
    import tensorflow as tf

    limits = []
    with contextlib.suppress(tf.errors.OpError), tf.Graph().as_default():
        with tf.compat.v1.Session() as session:
            devices = session.list_devices()
        limits = [int(d.memory_limit_bytes) for d in devices if d.device_type == "GPU"]
    return min(limits, default=0)
