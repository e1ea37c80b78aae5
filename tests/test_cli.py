import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mapseg import cli

ROOT = Path(__file__).parents[1]


def call(*arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_explicit_flags_win_over_a_flag_file_wherever_it_stands():
    first = cli._flag_files_first
    assert first(["p", "--steps=9", "--flagfile=f"]) == ["p", "--flagfile=f", "--steps=9"]
    assert first(["p", "--a", "-flagfile", "f", "--b"]) == ["p", "--flagfile=f", "--a", "--b"]
    assert first(["p", "--", "--flagfile=f"]) == ["p", "--", "--flagfile=f"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_main.py"], "run_dir must be given"),
        (["train_main.py", "--run_dir=r"], "records_dir must be given"),
        (["train_main.py", "--flip", "false"], "got false"),
        (["train_main.py", "--no_such_flag=1"], "no_such_flag"),
        (["train_main.py", "--steps=many"], "steps"),
        (["train_main.py", "--mode=dance"], "mode"),
        (["train_main.py", "--flagfile=none.flags"], "none.flags"),
        (["infer_main.py", "--run_dir=r"], "frames must be given"),
        (["infer_main.py", "--run_dir=r", "--frames=x", "--out_dir=o", "--every=0"], "every"),
    ],
)
def test_a_bad_call_is_one_line_and_exit_code_1(arguments, message):
    done = call(*arguments)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert "Traceback" not in done.stderr


def test_help_lists_every_option():
    done = call("train_main.py", "--help")
    for name in ("--learning_rate", "--encoder", "--tile_px", "--mode", "--init_from"):
        assert name in done.stdout


def test_the_first_signal_asks_to_stop_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with cli.stop_on_signal() as stopping:
        assert not stopping()
        signal.raise_signal(signal.SIGTERM)
        assert stopping()
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before
