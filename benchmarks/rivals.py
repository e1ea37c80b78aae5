"""Shared by benchmarks: runs programs alternately, and builds the commands of other projects."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mapseg import machine

TIMM_NAMES = {"mobilenet_v2": "mobilenetv2_100", "efficientnet_lite0": "efficientnet_lite0"}

Result = TypeVar("Result")


def rival_command(template: str, **words: object) -> list[str]:
    """Splits a command line and replaces the words that are keys of `words`.

    ARCH becomes timm's name of the encoder.
    """
    texts = {name: str(value) for name, value in words.items()}
    if "ARCH" in texts:
        texts["ARCH"] = TIMM_NAMES.get(texts["ARCH"], texts["ARCH"])
    return [texts.get(word, word) for word in shlex.split(template)]


def run_json(command: Sequence[str]) -> dict[str, Any]:
    """Runs a program and parses the last line that it prints.

    Raises:
      ChildProcessError: the program failed.
    """
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ChildProcessError(f"{shlex.join(command)} must succeed; {process.stderr[-1000:]}")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


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
