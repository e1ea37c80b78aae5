"""Shared by benchmarks: measures in child processes, alternately with other projects' programs."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from mapseg import cli, machine, startup

TIMM_NAMES = {"mobilenet_v2": "mobilenetv2_100", "efficientnet_lite0": "efficientnet_lite0"}

Result = TypeVar("Result")
_CASE = "--case"  # the first argument of a child process; the second is the case in JSON


def run_benchmark(
    work: Callable[[flags.FlagValues], int],
    values: flags.FlagValues,
    argv: Sequence[str],
    about: str | None,
    measure: Callable[[Any], Any],
) -> int:
    """Runs a benchmark, or in its child processes one measurement; returns the exit code."""
    if argv[1:2] != [_CASE]:
        return cli.run(work, values, argv, about)
    startup.quiet_tensorflow()
    print(json.dumps(measure(json.loads(argv[2]))))
    return 0


def rival_command(template: str, **words: object) -> list[str]:
    """Splits a command line and replaces the words that are keys of `words`.

    ARCH becomes timm's name of the encoder.
    """
    texts = {name: str(value) for name, value in words.items()}
    if "ARCH" in texts:
        texts["ARCH"] = TIMM_NAMES.get(texts["ARCH"], texts["ARCH"])
    return [texts.get(word, word) for word in shlex.split(template)]


def run_json(command: Sequence[str]) -> Any:
    """Runs a program and parses the last line that it prints as JSON.

    Raises:
      ChildProcessError: the program failed.
    """
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.stderr.write(process.stderr)
        raise ChildProcessError(f"{shlex.join(command)} must succeed; see its errors above")
    return json.loads(process.stdout.splitlines()[-1])


def run_child(program: str, case: Any) -> Any:
    """Measures one case in a process of its own; returns the figures.

    Args:
      program: path of the benchmark, which ends with `run_benchmark`.
      case: what its `measure` is called with; must be representable in JSON, as the figures must.

    Raises:
      ChildProcessError: the measurement failed.
    """
    return run_json([sys.executable, program, _CASE, json.dumps(case)])


def take_turns(
    measurements: Mapping[str, Callable[[], Result]], rounds: int
) -> dict[str, list[Result]]:
    """Takes measurements alternately, several times; returns the results of each by name."""
    turns: dict[str, list[Result]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measurement in measurements.items():
            turns[name].append(measurement())
    return turns


def describe_machine() -> str:
    """Describes the machine of the measurement."""
    cpu_flags: set[str] = set()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu_flags = set(next((x for x in lines if x.startswith("flags")), "").split())
    kinds = [x for x in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if x in cpu_flags]
    return f"{machine.cores()} cores, {' '.join(kinds) or 'no AVX2'}, {os.uname().machine}"
