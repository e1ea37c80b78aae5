"""What benchmarks share: programs that run in turn, and the commands of other projects."""

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapseg import machine

TIMM_NAMES = {"mobilenet_v2": "mobilenetv2_100", "efficientnet_lite0": "efficientnet_lite0"}

Turns = dict[str, list[dict[str, Any]]]


def rival_command(template: str, **words: object) -> list[str]:
    """Splits a command line and replaces the words that are keys of `words`.

    ARCH becomes the name that timm gives to the encoder.
    """
    texts = {name: str(value) for name, value in words.items()}
    if "ARCH" in texts:
        texts["ARCH"] = TIMM_NAMES.get(texts["ARCH"], texts["ARCH"])
    return [texts.get(word, word) for word in shlex.split(template)]


def run_json(command: Sequence[str]) -> dict[str, Any]:
    """Runs a program and parses the last line that it prints.

    Raises:
      ChildProcessError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"{shlex.join(command)} must succeed; {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def take_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> Turns:
    """Runs programs in turn, several times; returns what each printed, by its name."""
    turns: Turns = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            turns[name].append(run_json(command))
    return turns


def describe_machine() -> str:
    """Says what is measured on."""
    flags_of_cpu: set[str] = set()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags_of_cpu = set(next((x for x in lines if x.startswith("flags")), "").split())
    kinds = [x for x in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if x in flags_of_cpu]
    return f"{machine.cores()} cores, {' '.join(kinds) or 'no AVX2'}, {os.uname().machine}"
