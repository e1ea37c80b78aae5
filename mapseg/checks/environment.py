"""Checks of the machine: packages, GPUs, memory, disk."""

import importlib
import math
import platform
import shutil

from mapseg import machine
from mapseg.checks.case import FAIL, OK, WARN, Case, Finding, writable_folder
from mapseg.progress import amount

_PACKAGES = ("tensorflow", "keras", "cv2", "PIL", "h5py", "google_crc32c", "matplotlib")
_SLOTS = {"sgd": 1, "lookahead_radam": 3}  # of the optimizer for each weight; others have 2
_PROGRAM_BYTES = 2e9  # TensorFlow itself
_CPU_STEP_BYTES_PER_PX = 4000  # of a crop; after the table in docs/benchmarks.md
_BUSY_SHARE = 0.1  # of a GPU's memory


def check_versions(case: Case) -> Finding:
    """Imports what training needs."""
    case.progress("importing TensorFlow ...")
    try:
        tensorflow, keras, *_ = map(importlib.import_module, _PACKAGES)
    except ImportError as error:
        return Finding(FAIL, f"{error}. Remedy: pip install -e . in the environment of this Python")
    versions = f"TensorFlow {tensorflow.__version__}, Keras {keras.__version__}"
    return Finding(OK, f"Python {platform.python_version()}, {versions}")


def check_gpu(case: Case) -> Finding:
    """Looks for GPUs, whether TensorFlow sees them, and whether they are free."""
    seen, reports = machine.gpus(), machine.driver_reports()
    hidden = machine.hidden_gpu(reports)
    if hidden:
        return Finding(WARN, hidden)
    if not seen:
        return Finding(OK, f"none; training runs on the CPU, {machine.cores()} cores")
    text = ", ".join(gpu.name for gpu in seen)
    for report in reports:
        text += f"; driver {report.version}, {report.used_mb} of {report.total_mb} MB used"
    if any(report.used_mb > _BUSY_SHARE * report.total_mb for report in reports):
        return Finding(WARN, f"{text}: by another program. Remedy: end it (nvidia-smi names it)")
    return Finding(OK, text)


def check_memory(case: Case) -> Finding:
    """Compares the host's memory with what reading and, on a CPU, the step will take."""
    needed = _PROGRAM_BYTES + case.train.input_memory_mb * 2**20
    what = "TensorFlow and the input"
    if not machine.gpus():
        pixels = case.train.batch_size * math.prod(case.train.crop_size)
        needed += _CPU_STEP_BYTES_PER_PX * pixels
        what += " and, on a CPU, the step"
    available = machine.available_bytes()
    text = f"{amount(available)} available; {what} may take about {amount(needed)}"
    if needed > available:
        remedy = "Remedy: lower --input_memory_mb, --batch_size or the crop"
        return Finding(WARN, f"{text}: the program may be killed. {remedy}")
    return Finding(OK, text)


def check_disk(case: Case) -> Finding:
    """Compares the room where the run goes with what its checkpoints take."""
    folder = writable_folder(case.goal, "another --run_dir")
    # The state has the weights and the optimizer's slots, weights.npz the weights again. Beside
    # those that are kept lie the best one and one that is being written.
    copies = 2 + _SLOTS.get(case.train.optimizer, 2)
    count = max(case.train.keep_checkpoints + 2 - len(case.saved), 1)
    needed, free = case.trial.weight_bytes * copies * count, shutil.disk_usage(folder).free
    text = f"{amount(free)} free at {folder}; checkpoints will take about {amount(needed)}"
    if free < needed:
        return Finding(FAIL, f"{text}. Remedy: free some, or lower --keep_checkpoints")
    return Finding(OK, text)
