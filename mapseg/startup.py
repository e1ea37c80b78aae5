"""Program start: UTF-8 mode, and a quiet start of TensorFlow."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from mapseg import machine, onednn

# Logged without a driver, the first lines before TF_CPP_MIN_LOG_LEVEL takes effect.
_NOISE = (
    r"^I\d{4} |All log messages before absl::InitializeLog|[Cc]ould not find cuda drivers|"
    r"failed call to cuInit|Unable to register cu(DNN|FFT|BLAS) factory|TF-TRT Warning|"
    r"oneDNN custom operations are on|binary is optimized to use available CPU instructions|"
    r"^To enable the following instructions"
)
_FILTER = """
import re, sys
noise = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not noise.search(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


def use_utf8() -> None:
    """Restarts this program in Python's UTF-8 mode if the locale has another encoding.

    Otherwise file names would be decoded differently from those stored in records and tables, and
    from the encoding that TensorFlow uses.
    """
    if sys.getfilesystemencoding() == "utf-8" or "utf8" in sys._xoptions:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    onednn.use_stored(None)  # the new process must not take mapseg's choice for the user's
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def quiet_tensorflow() -> None:
    """Makes TensorFlow start quietly if this machine has no NVIDIA driver.

    Must be called before TensorFlow is imported; does not import it. With a driver nothing is
    hidden: the lines then explain why a GPU is not used. A TF_CPP_MIN_LOG_LEVEL set by the user is
    kept; 0 and 1 show all lines.
    """
    if machine.has_nvidia_driver() or shutil.which("nvidia-smi") or "tensorflow" in sys.modules:
        return
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1"):
        sys.meta_path.insert(0, _QuietFinder())


class _QuietFinder(MetaPathFinder):
    """Finds TensorFlow as Python does, and filters stderr during its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with _filtered_errors():
                execute(module)
                module.config.list_physical_devices()  # prints the remaining lines

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _filtered_errors() -> Iterator[None]:
    """Drops the noise from this process's stderr, including output of libraries.

    A separate process filters it, so that output before a crash is still shown.
    """
    try:
        real = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    command = [sys.executable, "-I", "-S", "-c", _FILTER, _NOISE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=real, start_new_session=True
    ) as process:
        if process.stdin is None:
            raise TypeError("the filter must have an input")
        os.dup2(process.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
