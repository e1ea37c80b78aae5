"""oneDNN in TensorFlow's operations on a CPU: on unless the user or a run decides otherwise.

TensorFlow itself turns it on only where the CPU has AVX-512, but it helps elsewhere too. It changes
the last bits of a result, so a run stores whether it was begun with it, and resumes so.
"""

import os
import platform
import sys
import warnings

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"  # TensorFlow reads it once, when it is imported

_state = {"is_ours": False}  # whether the variable was set here


def turn_on() -> None:
    """Turns oneDNN on, before TensorFlow is imported and unless the user has decided."""
    if VARIABLE in os.environ:
        return
    if "tensorflow" not in sys.modules:
        os.environ[VARIABLE] = "1"
        _state["is_ours"] = True
    elif platform.machine() in ("x86_64", "AMD64") and not is_on():
        warnings.warn(
            "TensorFlow was imported before mapseg: oneDNN, with which a CPU predicts and trains "
            f"faster, stays off. Remedy: import mapseg first, or set {VARIABLE}=1",
            stacklevel=3,
        )


def use_stored(stored: bool | None) -> None:
    """Chooses what a run was begun with, as long as TensorFlow is not imported.

    Args:
      stored: None for a run of a version that left the choice to TensorFlow.
    """
    if "tensorflow" in sys.modules:
        return
    asked = os.environ.get(VARIABLE)
    if stored is None:
        if _state["is_ours"]:
            os.environ.pop(VARIABLE, None)
        return
    os.environ[VARIABLE] = str(int(stored))
    if asked in ("0", "1") and asked != os.environ[VARIABLE] and not _state["is_ours"]:
        warnings.warn(
            f"this run was begun with oneDNN {_word(stored)} and resumes so; {VARIABLE}={asked} is "
            "ignored",
            stacklevel=3,
        )


def is_on() -> bool:
    """Says whether TensorFlow, which this imports, uses oneDNN."""
    from tensorflow.python.util import _pywrap_util_port  # no public function tells

    return bool(_pywrap_util_port.IsMklEnabled())


def difference(stored: bool | None) -> str:
    """Says that a run resumes with another choice than it was begun with, and why; else empty.

    Args:
      stored: None is the choice that TensorFlow makes.
    """
    if stored is None or stored == is_on():
        return ""
    return (
        f"this run was begun with oneDNN {_word(stored)} and resumes with it "
        f"{_word(not stored)}, so its last bits will be others: TensorFlow was imported before the "
        f"run was opened, or has no oneDNN here. Remedy: a new process with {VARIABLE}={stored:d}"
    )


def _word(on: bool) -> str:
    return "on" if on else "off"
