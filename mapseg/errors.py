"""Error messages for users: one line with cause and remedy, or a request to report a bug."""

import errno
import re
import traceback
from pathlib import Path

from mapseg.files import quoted_errno, remedy_of

_ROOT = Path(__file__).resolve().parents[1]  # the checkout, or where the wheel is installed
_PARTS = ("mapseg", "data_prep", "experiments", "benchmarks", "train_main.py", "infer_main.py")


def is_foreseen(error: BaseException) -> bool:
    """Whether the program expects this error, so that its message is enough.

    Expected: errors from the project's own `raise` statements, here, in another process, or in
    Python that TensorFlow called; system errors about a file; full memory and full disks. All
    others are bugs, such as a ValueError from NumPy.
    """
    if isinstance(error, MemoryError) or _is_exhausted(error) or quoted_errno(error) is not None:
        return True
    if type(error).__module__.startswith("absl.flags"):  # a bad flag; by name: does not import absl
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    if _raised_within(error):
        return _is_ours(*_last_frame(str(error)))
    if not isinstance(error, ValueError | OSError | FloatingPointError):
        return False
    if type(error.__cause__).__name__ in ("_RemoteTraceback", "RemoteTraceback"):
        return _is_ours(*_last_frame(str(error.__cause__)))  # multiprocessing: text only
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _is_ours(frames[-1].filename, frames[-1].line or "")


def one_line(error: BaseException) -> str:
    """Returns the message in one line; for a bug, with a request to report it."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    if is_foreseen(error):
        return _foreseen_text(error) + notes
    text = " ".join(str(error).split())[:1000]
    remedy = "This is a bug in mapseg: please report it with all of this text"
    return f"{type(error).__name__}: {text}{notes}. {remedy}"


def _foreseen_text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if (number := quoted_errno(error)) is not None:
        full = "the disk is full: " if number in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{full}{text[:1000]}. Remedy: {remedy_of(number)}"
    if _is_exhausted(error):
        return (
            "the device's memory is full. Remedy: lower --batch_size or --crop_height and "
            "--crop_width; when evaluating or predicting, --tile_px"
        )
    if isinstance(error, MemoryError):
        return f"the host's memory is full: {text}. Remedy: lower --input_memory_mb or --batch_size"
    return _raised_within(error) or text


def _is_exhausted(error: BaseException) -> bool:
    return type(error).__name__ == "ResourceExhaustedError"  # by name: does not import TensorFlow


def _raised_within(error: BaseException) -> str:
    """Returns the message of an error in Python code that TensorFlow called; else empty."""
    text = " ".join(str(error).split())
    match = re.search(r"(?:Value|OS|FileNotFound)Error: (.+?) Traceback \(most recent", text)
    return match[1] if match else ""


def _last_frame(text: str) -> tuple[str, str]:
    """Returns the file and the source line of the innermost frame of a traceback's text."""
    frames = re.findall(r'File "(.+?)", line \d+, in .+\n +(.+)', text)
    return frames[-1] if frames else ("", "")


def _is_ours(file: str, line: str) -> bool:
    """Whether a source line is a `raise` statement of the project."""
    path = Path(file).resolve()
    if _ROOT not in path.parents:
        return False
    return path.relative_to(_ROOT).parts[0] in _PARTS and line.startswith("raise ")
