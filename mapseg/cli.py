"""Flags from config dataclasses, options from flags, and exit codes from errors.

Only the entry points import this.
"""

import contextlib
import dataclasses
import io
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from mapseg import compiling, startup
from mapseg.errors import is_foreseen, one_line
from mapseg.files import expand_home

_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}


def define_flags(values: flags.FlagValues, *kinds: type) -> None:
    """Defines a flag for every field of config dataclasses, with the same name."""
    for kind in kinds:
        for field in dataclasses.fields(kind):
            text = field.metadata["help"]
            choices = field.metadata["choices"]
            if choices:
                text += f": {', '.join(choices)}"
            _DEFINE[type(field.default)](field.name, field.default, text, flag_values=values)


def explicit_options(values: flags.FlagValues, *kinds: type) -> dict[str, Any]:
    """Returns the fields of config dataclasses that the command line or a flag file set."""
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    return {name: values[name].value for name in names if values[name].present}


def required(values: flags.FlagValues, name: str) -> str:
    """Returns a flag's value.

    Raises:
      ValueError: it is empty.
    """
    value = str(values[name].value)
    if not value:
        raise ValueError(f"{name} must be given: {values[name].help}. Remedy: --{name}=...")
    return value


def size(values: flags.FlagValues, name: str) -> tuple[int, int]:
    """Returns a flag's (height, width) in pixels.

    Raises:
      ValueError: it is not HEIGHTxWIDTH, or one of them is 0.
    """
    text = str(values[name].value)
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ValueError(f"{name} must be HEIGHTxWIDTH in pixels, such as 384x512; got {text}")
    height, width = map(int, match.groups())
    if not height or not width:
        raise ValueError(f"{name} must be two positive pixel counts; got {text}")
    return height, width


def use_compile_cache(values: flags.FlagValues) -> None:
    """Sets up the cache of --compile_cache_dir, before TensorFlow is imported.

    Raises:
      OSError: the user's chosen folder is unusable; for the default this is only reported.
    """
    folder = str(values["compile_cache_dir"].value)
    if folder == "auto":
        try:
            compiling.use_compile_cache(compiling.default_cache_dir())
        except (OSError, RuntimeError) as error:  # no home folder, or not writable
            report(f"compiled programs will not be cached: {error}")
    elif folder:
        compiling.use_compile_cache(Path(folder))


def run(
    main: Callable[[flags.FlagValues], int],
    values: flags.FlagValues,
    argv: Sequence[str] | None,
    about: str | None,
) -> int:
    """Parses the flags and calls `main`, in which TensorFlow starts quietly.

    Flags on the command line override those of a flag file, in any order. Bad flags, extra
    arguments and expected errors print one line to stderr; others print a traceback and a note that
    it is a bug.

    Args:
      main: called with the parsed flags, returns an exit code.
      values: the program's flags.
      argv: the program's name and its arguments; None reads the command line.
      about: text that `--help` shows above the flags.

    Returns:
      The exit code: that of `main`, 1 after an error, 130 after Ctrl-C.
    """
    if argv is None:
        startup.use_utf8()
    for stream in (sys.stdout, sys.stderr):  # a name the terminal cannot show is no error
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    flags.DEFINE_bool("help", False, "show this help", flag_values=values)
    flags.DEFINE_bool("traceback", False, "show the traceback of an error", flag_values=values)
    try:
        rest = values(_flag_files_first(sys.argv if argv is None else argv))[1:]
        if rest:
            raise ValueError(
                f"arguments must be flags, --name=value; got {' '.join(rest)}. Remedy: write a "
                "switch as --name or --noname"
            )
        if values["help"].value:
            report(f"{about}\n{values.get_help()}")
            return 0
        _expand_home(values)
        startup.quiet_tensorflow()
        return main(values)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except Exception as error:
        if values["traceback"].value or not is_foreseen(error):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def report(line: str) -> None:
    """Prints a line immediately; a closed pipe or a full disk does not end the program."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one ends the program.

    A thread receives both, as Python's handlers do not run while TensorFlow compiles or waits for
    another machine. Must be called from the main thread.
    """
    stop_requested = threading.Event()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    former_fd = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda *_: stop_requested.set()) for number in numbers}

    def watch() -> None:
        received = 0
        while number := reading.recv(1):
            if number[0] not in numbers:
                continue
            received += 1
            if received > 1:
                os._exit(128 + number[0])
            stop_requested.set()
            with contextlib.suppress(OSError):
                os.write(2, b"stopping after this step; a second signal exits without saving\n")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop_requested.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_fd)
        writing.close()
        watcher.join()
        reading.close()


def _expand_home(values: flags.FlagValues) -> None:
    """Expands a leading `~` in flag values; the shell does not in --name=~/folder."""

    def expanded(value: str) -> str:
        return str(expand_home(value)) if value.startswith("~") else value

    for name in values:
        value = values[name].value
        if isinstance(value, str):
            values[name].value = expanded(value)
        elif isinstance(value, list):
            values[name].value = [expanded(item) for item in value]


def _check_flag_file(path: Path) -> None:
    """Rejects a flag file that absl would misread.

    Raises:
      ValueError: the file is not UTF-8, or has a byte-order mark.
    """
    if not path.is_file():
        return  # absl reports it
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: a flag file must be UTF-8 text; got {error}. Remedy: save it as UTF-8"
        ) from error
    if text.startswith("\ufeff"):
        raise ValueError(
            f"{path}: a flag file must begin with a flag; got a byte-order mark. Remedy: save it "
            "as UTF-8 without one"
        )


def _flag_files_first(argv: Sequence[str]) -> list[str]:
    """Moves every --flagfile to the front: with absl the last value of a flag wins."""
    files: list[str] = []
    other_arguments: list[str] = []
    rest = iter(argv[1:])
    for argument in rest:
        if argument == "--":
            other_arguments += [argument, *rest]
        elif argument in ("--flagfile", "-flagfile"):
            files += [f"--flagfile={next(rest, '')}"]
        else:
            is_file = argument.lstrip("-").startswith("flagfile=") and argument.startswith("-")
            (files if is_file else other_arguments).append(argument)
    for file in files:
        _check_flag_file(expand_home(file.partition("=")[2]))
    return [argv[0], *files, *other_arguments]
