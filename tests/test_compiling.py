import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from conftest import ROOT

from mapseg import compiling
from mapseg.compiling import default_cache_dir, use_compile_cache

PROGRAM = """
import os, sys
from pathlib import Path
from mapseg.compiling import use_compile_cache
use_compile_cache(Path(sys.argv[1]))
import tensorflow as tf
double = tf.function(lambda x: 2 * tf.tanh(x), jit_compile=True)
print(double(tf.zeros([3])).numpy().tolist(), os.environ["XLA_FLAGS"])
"""


@pytest.mark.addons
def test_a_compiled_program_is_read_from_the_cache(tmp_path):
    folder = tmp_path / "my cache"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true"}

    def compile_once():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.startswith("[0.0, 0.0, 0.0] --xla_cpu_multi_thread_eigen=true")
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*.pb")}

    first = compile_once()
    assert len(first) == (0 if tf.__version__.startswith("2.15") else 1)
    assert compile_once() == first  # read, not written again


def test_each_kind_of_machine_has_its_own_programs(tmp_path, monkeypatch):
    """XLA would load a program for AVX-512 on a CPU without it."""
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    folders = []
    for kind in ("avx2", "avx512", "avx2"):
        monkeypatch.setenv("TF_XLA_FLAGS", "")
        monkeypatch.setenv("XLA_FLAGS", "")
        monkeypatch.setattr(compiling, "hardware", lambda kind=kind: kind)
        use_compile_cache(tmp_path)
        folders.append(os.environ["TF_XLA_FLAGS"].partition("directory=")[2].split()[0])
    assert folders[0] == folders[2] != folders[1]
    assert {Path(folder.strip('"')) for folder in folders} == {*tmp_path.iterdir()}


def test_the_cache_must_be_set_up_before_tensorflow(tmp_path):
    with pytest.raises(RuntimeError, match="before TensorFlow"):
        use_compile_cache(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_created_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        use_compile_cache(tmp_path / "file" / "cache")


def test_the_default_is_in_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_dir() == Path("/caches/mapseg/compiled")
