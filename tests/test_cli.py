import signal
import subprocess
import sys

import pytest
from absl import flags
from conftest import ROOT

import train_main
from mapseg import cli
from mapseg.config import TrainConfig


def call(*arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_init_checkpoint_is_another_name_of_init_from():
    values = train_main.define_flags()
    values(["train_main.py", "--init_checkpoint=deeplab/model.ckpt"])
    assert cli.explicit_options(values, TrainConfig) == {"init_from": "deeplab/model.ckpt"}


def test_explicit_flags_override_a_flag_file_in_any_order():
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
        (["infer_main.py", "--frames=f"], "either run_dir, optionally with checkpoint, or"),
        (["infer_main.py", "--run_dir=r", "--init_checkpoint=c"], "run_dir=r, init_checkpoint=c"),
        (["infer_main.py", "--init_checkpoint=c", "--checkpoint=best"], "init_checkpoint=c"),
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


def test_the_command_line_overrides_a_flag_file(tmp_path):
    (tmp_path / "f.flags").write_text("# a comment\n--steps=5\n--seed=7\n--noflip\n")
    options = {}

    def remember(values):
        options.update(cli.explicit_options(values, TrainConfig))
        return 0

    values = flags.FlagValues()
    cli.define_flags(values, TrainConfig)
    argv = ["program", "--steps=9", f"--flagfile={tmp_path / 'f.flags'}"]
    assert cli.run(remember, values, argv, "about") == 0
    assert options == {"steps": 9, "seed": 7, "flip": False}


def test_help_lists_every_option():
    done = call("train_main.py", "--help")
    for name in ("--learning_rate", "--encoder", "--tile_px", "--mode", "--init_from"):
        assert name in done.stdout


def test_the_first_signal_requests_a_stop_and_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with cli.stop_on_signal() as stopping:
        assert not stopping()
        signal.raise_signal(signal.SIGTERM)
        assert stopping()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_are_received_while_python_is_blocked(number, code):
    """Locking a mutex twice blocks forever, regardless of signals, as TensorFlow may."""
    program = """
import ctypes, sys
from mapseg import cli
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with cli.stop_on_signal():
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stderr.readline().startswith("stopping after this step")
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == code


def test_a_size_is_height_by_width():
    values = flags.FlagValues()
    flags.DEFINE_string("resize_to", "384x512", "size", flag_values=values)
    values(["program"])
    assert cli.size(values, "resize_to") == (384, 512)
    for text, problem in (
        ("512", "be HEIGHTxWIDTH in pixels, such as"),
        ("0x9", "be two positive"),
    ):
        values.resize_to = text
        with pytest.raises(ValueError, match=f"resize_to must {problem}.*; got {text}"):
            cli.size(values, "resize_to")
