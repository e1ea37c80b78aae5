"""oneDNN in TensorFlow's operations on a CPU: on unless the user or a run decides otherwise.

TensorFlow turns it on by default only on CPUs with AVX-512, but it is faster on others too. It
changes the last bits of a result, so a run stores its setting and resumes with the same.
"""

import os
import platform
import sys
import warnings

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"  # TensorFlow reads it once, when it is imported

_state = {"is_ours": False}  # whether this module set the variable


def turn_on() -> None:
    """Turns oneDNN on unless the user has chosen; must come before TensorFlow is imported."""
    if VARIABLE in os.environ:
        return
    if "tensorflow" not in sys.modules:
        os.environ[VARIABLE] = "1"
        _state["is_ours"] = True
    elif platform.machine() in ("x86_64", "AMD64") and not is_on():
        warnings.warn(
            "TensorFlow was imported before mapseg: oneDNN, which makes training and "
            "prediction on a CPU faster, stays off. Remedy: import mapseg first, or set "
            f"{VARIABLE}=1",
            stacklevel=3,
        )


def use_stored(stored: bool | None) -> None:
    """Applies the setting that a run began with, unless TensorFlow is already imported.

    Args:
      stored: the setting; None for a run by a version that left it to TensorFlow.
    """
    if "tensorflow" in sys.modules:
        return
    requested = os.environ.get(VARIABLE)
    if stored is None:
        if _state["is_ours"]:
            os.environ.pop(VARIABLE, None)
        return
    os.environ[VARIABLE] = str(int(stored))
    if requested in ("0", "1") and requested != os.environ[VARIABLE] and not _state["is_ours"]:
        warnings.warn(
            f"this run began with oneDNN {_word(stored)} and resumes with it {_word(stored)}; "
            f"{VARIABLE}={requested} is ignored",
            stacklevel=3,
        )


def is_on() -> bool:
    """Returns whether TensorFlow uses oneDNN; imports TensorFlow."""
    from tensorflow.python.util import _pywrap_util_port  # there is no public function

    return bool(_pywrap_util_port.IsMklEnabled())


def difference(stored: bool | None) -> str:
    """Returns a message if a run resumes with a setting it did not begin with; else empty.

    Args:
      stored: the run's setting; None leaves it to TensorFlow.
    """
    if stored is None or stored == is_on():
        return ""
    return (
        f"this run began with oneDNN {_word(stored)} and resumes with it {_word(not stored)}, so "
        "the last bits of its results will differ: TensorFlow was imported before the run was "
        f"opened, or has no oneDNN here. Remedy: start a new process with {VARIABLE}={stored:d}"
    )


def _word(on: bool) -> str:
    return "on" if on else "off"
