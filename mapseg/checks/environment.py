"""Checks of the machine: packages, GPUs, memory, disk."""

import importlib
import math
import platform
import shutil

from mapseg import machine
from mapseg.checks.case import FAIL, OK, WARN, Case, Finding, writable_folder
from mapseg.progress import amount

_PACKAGES = ("tensorflow", "keras", "cv2", "PIL", "h5py", "google_crc32c", "matplotlib")
_SLOTS = {"sgd": 1, "lookahead_radam": 3}  # optimizer slots per weight; the others have 2
_PROGRAM_BYTES = 2e9  # TensorFlow itself
_CPU_STEP_BYTES_PER_PX = 4000  # per crop pixel; from the table in docs/benchmarks.md
_BUSY_SHARE = 0.1  # of a GPU's memory


def check_versions(case: Case) -> Finding:
    """Imports the packages that training needs."""
    case.progress("importing TensorFlow ...")
    try:
        tensorflow, keras, *_ = map(importlib.import_module, _PACKAGES)
    except ImportError as error:
        return Finding(FAIL, f"{error}. Remedy: pip install -e . in the environment of this Python")
    versions = f"TensorFlow {tensorflow.__version__}, Keras {keras.__version__}"
    return Finding(OK, f"Python {platform.python_version()}, {versions}")


def check_gpu(case: Case) -> Finding:
    """Looks for GPUs, and checks that TensorFlow sees them and no other program uses them."""
    gpus, reports = machine.gpus(), machine.driver_reports()
    hidden = machine.hidden_gpu(reports)
    if hidden:
        return Finding(WARN, hidden)
    if not gpus:
        return Finding(OK, f"none; training runs on the CPU, {machine.cores()} cores")
    text = ", ".join(gpu.name for gpu in gpus)
    for report in reports:
        text += f"; driver {report.version}, {report.used_mb} of {report.total_mb} MB used"
    if any(report.used_mb > _BUSY_SHARE * report.total_mb for report in reports):
        return Finding(WARN, f"{text} by another program. Remedy: stop it (nvidia-smi lists it)")
    return Finding(OK, text)


def check_memory(case: Case) -> Finding:
    """Compares host memory with what the input and, on a CPU, the step need."""
    needed = _PROGRAM_BYTES + case.train.input_memory_mb * 2**20
    consumers = "TensorFlow and the input pipeline"
    if not machine.gpus():
        pixels = case.train.batch_size * math.prod(case.train.crop_size)
        needed += _CPU_STEP_BYTES_PER_PX * pixels
        consumers += " and the step on the CPU"
    available = machine.available_bytes()
    text = f"{amount(available)} available; {consumers} may need about {amount(needed)}"
    if needed > available:
        remedy = "Remedy: lower --input_memory_mb, --batch_size or the crop"
        return Finding(WARN, f"{text}; the system may kill the program. {remedy}")
    return Finding(OK, text)


def check_disk(case: Case) -> Finding:
    """Compares the free disk space with the size of the run's checkpoints."""
    folder = writable_folder(case.goal, "another --run_dir")
    # The state holds the weights and the optimizer's slots; weights.npz holds the weights again.
    # On top of the kept checkpoints come the best one and the one being written.
    copies = 2 + _SLOTS.get(case.train.optimizer, 2)
    count = max(case.train.keep_checkpoints + 2 - len(case.saved), 1)
    needed, free = case.trial.weight_bytes * copies * count, shutil.disk_usage(folder).free
    text = f"{amount(free)} free at {folder}; checkpoints will need about {amount(needed)}"
    if free < needed:
        return Finding(FAIL, f"{text}. Remedy: free some space, or lower --keep_checkpoints")
    return Finding(OK, text)
