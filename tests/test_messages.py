"""Messages name the true cause: of file errors, of damage, of unexpected errors."""

import errno
import fcntl
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from conftest import ROOT

from mapseg import cli, files, machine
from mapseg.config import TrainConfig
from mapseg.labels import LabelClass, make_label_set
from mapseg.progress import duration
from mapseg.runs import checkpoints
from mapseg.runs.folder import open_run
from mapseg.runs.history import append_history, read_history


def errors_of(fail, capsys):
    """Returns the lines that a failing program prints."""

    def main(_):
        fail()

    assert cli.run(main, flags.FlagValues(), ["program"], "about") == 1
    return capsys.readouterr().err.splitlines()


# --- failed writes


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space or name another folder"),
        (errno.EDQUOT, "free some space or name another folder"),
        (errno.EACCES, "name a folder that you may write to"),
        (errno.EROFS, "name a folder that you may write to"),
        (errno.ENAMETOOLONG, "a shorter name"),
        (errno.ENOTDIR, "the file that stands where a folder is needed"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "check the disk or the share"),
    ],
)
def test_the_remedy_matches_the_cause(number, remedy, tmp_path):
    with pytest.raises(files.WriteError) as caught, files.whole_file(tmp_path / "a.png"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"{tmp_path}/a.png: cannot be written: ")
    assert f"{os.strerror(number)}. Remedy: " in str(caught.value)
    assert remedy in str(caught.value)
    assert ("space" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert caught.value.errno == number
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_real_system_errors(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for path, remedy in (
        (tmp_path / "file" / "a.txt", "stands where a folder is needed"),
        (tmp_path / ("n" * 260), "a shorter name"),
        (tmp_path / "folder", "the folder that has the file's name"),
    ):
        with pytest.raises(files.WriteError, match=remedy):
            files.write_text(path, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_errors_of_other_files_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, files.whole_file(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")
    with (
        pytest.raises(OSError, match=r"^image file is truncated$"),
        files.whole_dir(tmp_path / "a"),
    ):
        raise OSError("image file is truncated")  # Pillow's, not the system's
    error = pytest.raises(files.WriteError, match="/a: cannot be written")
    with error, files.whole_dir(tmp_path / "a") as partial:
        (partial / "none" / "b").write_bytes(b"")  # in the folder that is being written


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_one_warning_is_printed(number, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with files.locked(tmp_path / "run" / ".lock", "another process is running"):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"WARNING: {tmp_path}/run: its file system has no locks (")


def test_other_failures_of_a_lock_are_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    error = pytest.raises(files.WriteError, match="stands where a folder is needed")
    with error, files.locked(tmp_path / "file" / "lock"):
        pass

    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    error = pytest.raises(files.WriteError, match="lock: cannot be written: Input/output error")
    with error, files.locked(tmp_path / "lock"):
        pass


def test_a_state_that_does_not_fit_on_the_disk_is_named(tmp_path):
    class Full:
        def write(self, _):
            raise tf.errors.ResourceExhaustedError(None, None, "x; No space left on device")

    with pytest.raises(files.WriteError, match=r"step-00000001: .*No space left.*free some space"):
        checkpoints.write_checkpoint(tmp_path, 1, Full(), {}, keep=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "history.csv").mkdir()
    with pytest.raises(files.WriteError, match=r"history\.csv: cannot be written"):
        append_history(tmp_path / "history.csv", {"step": 1})


# --- unexpected errors


def foreseen():
    make_label_set([LabelClass(0, "road", (0, 0, 0))], "all_66")


def foreseen_in_a_config():
    TrainConfig(steps=0)


def foreseen_in_tensorflow():
    def read(_):
        foreseen()

    data = tf.data.Dataset.range(1).map(lambda x: tf.numpy_function(read, [x], tf.int64))
    list(data)


def foreseen_elsewhere():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(foreseen).result()


def missing_file():
    Path("/nowhere/at/all").read_bytes()


def bad_flag():
    raise flags.IllegalFlagValueError("steps must be a number")


@pytest.mark.parametrize(
    ("fail", "text"),
    [
        (foreseen, "label_set=all_66 must be used with"),
        (foreseen_in_a_config, "steps must be positive; got 0"),
        (foreseen_in_tensorflow, "label_set=all_66 must be used with"),
        (foreseen_elsewhere, "label_set=all_66 must be used with"),
        (missing_file, "/nowhere/at/all"),
        (bad_flag, "steps must be a number"),
    ],
)
def test_an_expected_error_is_one_line(fail, text, capsys):
    (line,) = errors_of(fail, capsys)
    assert line.startswith("error: ")
    assert text in line
    assert "bug" not in line


def a_line_of_the_project():
    duration(math.nan)  # round() raises the ValueError


def not_the_projects():
    raise ValueError("steps must be\n positive")


def bug_in_tensorflow():
    def read(_):
        return np.zeros(3) + np.zeros(4)

    data = tf.data.Dataset.range(1).map(lambda x: tf.numpy_function(read, [x], tf.int64))
    list(data)


def bug_elsewhere():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(int, "x").result()


def key_error():
    {}["x"]


def no_system_error():
    raise OSError("made up")


@pytest.mark.parametrize(
    ("fail", "text"),
    [
        (a_line_of_the_project, "ValueError: "),
        (not_the_projects, "ValueError: steps must be positive"),
        (bug_in_tensorflow, "operands could not be broadcast"),
        (bug_elsewhere, "ValueError: invalid literal"),
        (key_error, "KeyError: 'x'"),
        (no_system_error, "OSError: made up"),
    ],
)
def test_an_unexpected_error_shows_its_traceback_and_is_called_a_bug(fail, text, capsys):
    lines = errors_of(fail, capsys)
    assert lines[0].startswith(("Traceback", "concurrent.futures", '"""', "multiprocessing"))
    assert any(fail.__name__ in line or "invalid literal" in line for line in lines)
    assert lines[-1].startswith("error: ")
    assert text in lines[-1]
    assert lines[-1].endswith("This is a bug in mapseg: please report it with all of this text")


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


@pytest.mark.parametrize(
    ("number", "text", "remedy"),
    [
        (errno.ENOSPC, "the disk is full: events; No space left on device", "free some space"),
        (errno.EDQUOT, "the disk is full: events; Disk quota exceeded", "free some space"),
        (errno.EMFILE, "events; Too many open files", "ulimit -n"),
    ],
)
def test_a_system_error_that_tensorflow_quotes_is_reported_by_its_cause(
    number, text, remedy, capsys
):
    def write():
        raise ResourceExhaustedError(f"events; {os.strerror(number)}")

    (line,) = errors_of(write, capsys)
    assert line.startswith(f"error: {text}. Remedy: ")
    assert remedy in line
    assert "memory" not in line


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (tf.errors.ResourceExhaustedError, errno.EDQUOT),
        (tf.errors.PermissionDeniedError, errno.EROFS),
        (tf.errors.OutOfRangeError, errno.EFBIG),
        (tf.errors.UnknownError, errno.EIO),
    ],
)
def test_a_file_that_tensorflow_cannot_write_is_named(kind, number, tmp_path):
    cause = os.strerror(number)
    with pytest.raises(files.WriteError) as caught, files.whole_dir(tmp_path / "export") as partial:
        raise kind(None, None, f"{partial}/variables; {cause}")
    assert str(caught.value).startswith(f"{tmp_path}/export: cannot be written: {cause}. Remedy: ")
    assert caught.value.errno == number
    with pytest.raises(kind), files.whole_dir(tmp_path / "export"):
        raise kind(None, None, "OOM when allocating tensor")
    assert list(tmp_path.iterdir()) == []


def test_full_memory_is_not_a_bug(capsys):
    def device():
        raise ResourceExhaustedError("OOM when allocating")

    def host():
        raise MemoryError("Unable to allocate 9 GiB")

    (line,) = errors_of(device, capsys)
    assert "lower --batch_size" in line
    (line,) = errors_of(host, capsys)
    assert "the host's memory is full: Unable to allocate 9 GiB. Remedy: " in line


# --- damaged files


@pytest.fixture
def copied(run_dir, tmp_path):
    """A copy of the run that tests may damage."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def edit(path, **changes):
    raw = json.loads(path.read_text())
    for place, value in changes.items():
        *folders, name = place.split("__")
        inner = raw
        for folder in folders:
            inner = inner[folder]
        if value is None:
            del inner[name]
        else:
            inner[name] = value
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__flip": "yes"}, "flip must be true or false; got 'yes'"),
        ({"train__flip": 1}, "flip must be true or false; got 1"),
        ({"train__steps": 4.5}, "steps must be a whole number; got 4.5"),
        ({"train__steps": True}, "steps must be a whole number; got True"),
        ({"train__learning_rate": "0.1"}, "learning_rate must be a number; got '0.1'"),
        ({"train__learning_rate": -1}, "learning_rate must be positive; got -1"),
        ({"train__label_set": ["a"]}, r"label_set must be a string; got \['a'\]"),
        ({"model__encoder": 50}, "encoder must be a string; got 50"),
        ({"model__encoder": "vgg"}, "encoder must be one of .*; got vgg"),
        ({"model": []}, r"model must be an object; got \[\]"),
        ({"train": None}, "train must be present; got no such field"),
        ({"long_side_px": "80"}, "long_side_px must be a whole number; got '80'"),
        ({"records_digest": 7}, "records_digest must be a string; got 7"),
        ({"source_classes": "a"}, "source_classes must be a list; got 'a'"),
        ({"format_version": "1"}, "format_version must be a whole number; got '1'"),
    ],
)
def test_a_wrong_type_in_the_config_is_refused_by_name(copied, changes, message):
    edit(copied / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"config\.json: {message}\. Remedy: "):
        open_run(copied)


def test_a_whole_number_is_accepted_for_a_float(copied):
    edit(copied / "config.json", train__learning_rate=1)
    assert open_run(copied).train.learning_rate == 1


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", open_run),
        ("labels.json", open_run),
        ("checkpoints/best.json", lambda run: checkpoints.read_best(run / "checkpoints")),
        (
            "checkpoints/step-00000004/info.json",
            lambda run: checkpoints.read_state(run / "checkpoints/step-00000004", None),
        ),
    ],
)
def test_damaged_json_is_named_with_the_place(copied, name, read):
    path = copied / name
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name}: must be JSON.* line \d+, column \d+.*Remedy: "):
        read(copied)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=rf"{name}: must be UTF-8.* byte 7 is not\. Remedy: "):
        read(copied)
    path.write_text("[]")
    with pytest.raises(ValueError, match=rf"{name}: "):
        read(copied)


def test_a_bad_best_json_is_named(copied):
    path = copied / "checkpoints" / "best.json"
    edit(path, step="4")
    with pytest.raises(ValueError, match=r"best\.json: step must be a whole number; got '4'"):
        checkpoints.find_checkpoint(copied)
    assert checkpoints.find_checkpoint(copied, "latest").name == "step-00000004"
    edit(path, step=3)
    with pytest.raises(FileNotFoundError, match=r"best, which is step 3 according to best\.json"):
        checkpoints.find_checkpoint(copied)
    edit(path, step=4, mean_iou=None)
    with pytest.raises(ValueError, match=r"best\.json: mean_iou must be present.*remove the file"):
        checkpoints.find_checkpoint(copied)


def test_an_incomplete_last_row_of_a_history_is_ignored(tmp_path):
    path = tmp_path / "history.csv"
    append_history(path, {"step": 2, "loss": 1.5})
    append_history(path, {"step": 2, "mean_iou": 0.25, "pixel_accuracy": 0.875})
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])  # killed: 0.8 is not what was measured
    assert read_history(path) == [{"step": 2, "loss": 1.5}]
    path.write_bytes(whole.replace(b"1.5", b"a lot"))
    with pytest.raises(ValueError, match=r"history\.csv, line 2: loss must be a number .*'a lot'"):
        read_history(path)
    path.write_bytes(whole + b"\xff\n")
    with pytest.raises(ValueError, match=r"history\.csv: must be a CSV file in UTF-8"):
        read_history(path)


def test_a_program_names_the_damaged_file(copied, records_dir):
    (copied / "config.json").write_text('{"train": ')
    for arguments in (
        ["train_main.py", "--mode=evaluate", f"--records_dir={records_dir}", f"--run_dir={copied}"],
        ["train_main.py", f"--records_dir={records_dir}", f"--run_dir={copied}"],
        ["infer_main.py", f"--run_dir={copied}", f"--frames={ROOT / 'docs'}", "--out_dir=unused"],
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {copied}/config.json: must be JSON")
        assert len(done.stderr.splitlines()) == 1


# --- TensorFlow's start


needs_no_driver = pytest.mark.skipif(
    machine.has_nvidia_driver() or bool(shutil.which("nvidia-smi")), reason="has an NVIDIA driver"
)
START = """
import sys
from mapseg import machine, startup
if "driver" in sys.argv:
    machine.has_nvidia_driver = lambda: True
startup.quiet_tensorflow()
import tensorflow as tf
print(tf.constant(1).numpy(), len(tf.config.list_logical_devices("CPU")))
"""


def start(script, *arguments, **variables):
    env = {k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL",)}
    env = {**env, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@needs_no_driver
def test_without_a_driver_tensorflow_starts_quietly():
    done = start(START)
    assert (done.stdout, done.stderr) == ("1 1\n", "")


@needs_no_driver
@pytest.mark.parametrize(
    ("arguments", "variables"), [(["driver"], {}), ([], {"TF_CPP_MIN_LOG_LEVEL": "0"})]
)
def test_with_a_driver_or_on_request_nothing_is_hidden(arguments, variables):
    done = start(START, *arguments, **variables)
    assert done.stdout == "1 1\n"
    assert "oneDNN custom operations are on" in done.stderr


@needs_no_driver
def test_real_errors_at_the_start_are_shown_even_before_a_crash():
    noise = "I0000 00:00:1.2  3 port.cc:153] oneDNN custom operations are on.\\n"
    done = start(f"""
import os
from mapseg import startup
with startup._filtered_errors():
    os.write(2, b"{noise}W0000 a real warning\\nF0000 no AVX here\\n")
    os.abort()
""")
    assert done.returncode < 0
    assert done.stderr == "W0000 a real warning\nF0000 no AVX here\n"
    done = start("""
import os
from mapseg import startup
with startup._filtered_errors():
    os.write(2, b"failed call to cuInit: x\\n")
os.write(2, b"failed call to cuInit: of something else\\n")
""")
    assert done.stderr == "failed call to cuInit: of something else\n"


@needs_no_driver
def test_every_program_starts_tensorflow_quietly():
    """See test_readme.py for the rest of what they print."""
    done = start("""
from absl import flags
from mapseg import cli
def work(values):
    import tensorflow as tf
    print(tf.constant(1).numpy())
    return 0
cli.run(work, flags.FlagValues(), ["program"], "about")
""")
    assert (done.stdout, done.stderr) == ("1\n", "")
