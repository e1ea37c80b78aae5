"""Config dataclasses -> absl flags -> what the user gave; errors -> messages and exit code 1.

Only the entry points import this.
"""

import contextlib
import dataclasses
import io
import os
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
    """Defines a flag of the same name for every field of some config dataclasses."""
    for kind in kinds:
        for field in dataclasses.fields(kind):
            text = field.metadata["help"]
            choices = field.metadata["choices"]
            if choices:
                text += f": {', '.join(choices)}"
            _DEFINE[type(field.default)](field.name, field.default, text, flag_values=values)


def given(values: flags.FlagValues, *kinds: type) -> dict[str, Any]:
    """Returns the options of some config dataclasses that the command line or a flag file set."""
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


def use_compile_cache(values: flags.FlagValues) -> None:
    """Does what --compile_cache_dir says, before TensorFlow is imported.

    Raises:
      OSError: the folder was asked for, and cannot be used; the default one is done without.
    """
    folder = str(values["compile_cache_dir"].value)
    if folder == "auto":
        try:
            compiling.use_compile_cache(compiling.default_cache_dir())
        except (OSError, RuntimeError) as error:  # no home, or one that cannot be written to
            report(f"what is compiled will not be kept: {error}")
    elif folder:
        compiling.use_compile_cache(Path(folder))


def run(
    main: Callable[[flags.FlagValues], int],
    values: flags.FlagValues,
    argv: Sequence[str] | None,
    about: str | None,
) -> int:
    """Parses the flags and calls `main`.

    Flags on the command line win over those of a flag file wherever either stands. A bad flag, a
    left-over argument and every failure that was foreseen end in one line on the error output; any
    other shows its traceback, and that it is a bug.

    Args:
      main: takes the parsed flags, returns an exit code.
      values: the flags that the program has.
      argv: the program's name and its arguments; None is those of the command line.
      about: what `--help` says above the flags.

    Returns:
      The exit code: that of `main`, 1 after an error, 130 after Ctrl-C.
    """
    if argv is None:
        startup.use_utf8()
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends no program
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    flags.DEFINE_bool("help", False, "show this", flag_values=values)
    flags.DEFINE_bool(
        "traceback", False, "show where in the program an error came from", flag_values=values
    )
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
        return main(values)
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on", file=sys.stderr)
        return 130
    except Exception as error:
        if values["traceback"].value or not is_foreseen(error):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def report(line: str) -> None:
    """Shows a line at once; a reader that went away, or a full disk, does not end the work."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one ends the program.

    Both are heard at once by a thread: while TensorFlow compiles, or waits for another machine,
    Python's own handlers do not run. Only for the main thread.
    """
    asked = threading.Event()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    former_fd = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}

    def watch() -> None:
        heard = 0
        while number := reading.recv(1):
            if number[0] not in numbers:
                continue
            heard += 1
            if heard > 1:
                os._exit(128 + number[0])
            asked.set()
            with contextlib.suppress(OSError):
                os.write(2, b"stopping after this step; once more ends at once without saving\n")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield asked.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_fd)
        writing.close()
        watcher.join()
        reading.close()


def _expand_home(values: flags.FlagValues) -> None:
    """Lets `~` begin the path of a folder or file: a shell leaves --name=~/folder as it is."""

    def expanded(value: str) -> str:
        return str(expand_home(value)) if value.startswith("~") else value

    for name in values:
        value = values[name].value
        if isinstance(value, str):
            values[name].value = expanded(value)
        elif isinstance(value, list):
            values[name].value = [expanded(each) for each in value]


def _check_flag_file(path: Path) -> None:
    """Refuses a flag file that absl would misread.

    Raises:
      ValueError: it is not plain UTF-8.
    """
    if not path.is_file():
        return  # absl's own error names it
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: a flag file must be text in UTF-8; got {error}. Remedy: save it as UTF-8"
        ) from error
    if text.startswith("\ufeff"):
        raise ValueError(
            f"{path}: a flag file must begin with a flag; got a byte-order mark. Remedy: save it "
            "as UTF-8 without one"
        )


def _flag_files_first(argv: Sequence[str]) -> list[str]:
    """Moves every --flagfile to the front: with absl the last value of a flag wins."""
    files: list[str] = []
    others: list[str] = []
    rest = iter(argv[1:])
    for argument in rest:
        if argument == "--":
            others += [argument, *rest]
        elif argument in ("--flagfile", "-flagfile"):
            files += [f"--flagfile={next(rest, '')}"]
        else:
            is_file = argument.lstrip("-").startswith("flagfile=") and argument.startswith("-")
            (files if is_file else others).append(argument)
    for file in files:
        _check_flag_file(expand_home(file.partition("=")[2]))
    return [argv[0], *files, *others]
