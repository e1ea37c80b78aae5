"""Limits are respected: a container's share of the cores, the size of the compile cache."""

import os
import sys
import threading
import time

import pytest

from mapseg import compiling, machine


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder in place of the root folder, on a machine with eight cores."""
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", 8),
        ("400000 100000\n", 4),
        ("150000 100000\n", 2),  # one and a half
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("9900000 100000\n", 8),  # more than the machine has
        ("", 8),
        ("broken\n", 8),
    ],
)
def test_cores_are_those_of_the_container(root, text, cores):
    assert machine.cores() == 8
    write(root / "sys/fs/cgroup/cpu.max", text)
    assert machine.cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 3), ("1000", 1), ("x", 8)])
def test_cores_by_control_groups_v1(root, quota, cores):
    group = root / "sys/fs/cgroup/cpu"
    write(group / "cpu.cfs_quota_us", quota + "\n")
    write(group / "cpu.cfs_period_us", "100000\n")
    assert machine.cores() == cores


def test_quotas_of_a_group_and_its_parents_count(root):
    write(root / "proc/self/cgroup", "0::/user.slice/job.scope\n")
    mount = root / "sys/fs/cgroup"
    write(mount / "user.slice/job.scope/cpu.max", "max 100000\n")
    write(mount / "user.slice/cpu.max", "300000 100000\n")
    assert machine.cores() == 3
    write(mount / "user.slice/job.scope/cpu.max", "200000 100000\n")
    assert machine.cores() == 2
    write(root / "proc/self/cgroup", "9:memory:/a\n4:cpu,cpuacct:/docker/7\n0::/\n")
    write(mount / "cpu/docker/7/cpu.cfs_quota_us", "500000")
    write(mount / "cpu/docker/7/cpu.cfs_period_us", "100000")
    assert machine.cores() == 5


def test_the_affinity_counts_too(root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    write(root / "sys/fs/cgroup/cpu.max", "400000 100000\n")
    assert machine.cores() == 1


# --- the compile cache

HOUR = 3600


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of at most 1000 bytes, filled with files by path and age in hours."""
    monkeypatch.setattr(compiling, "_MOST_BYTES", 1000)

    def fill(**ages):
        now = time.time()
        for name, hours in ages.items():
            path = tmp_path / "cache" / name.replace("__", "/").replace("v", "tensorflow-2.")
            write(path, "x" * 400)
            os.utime(path, (now - hours * HOUR, now - hours * HOUR))
        return tmp_path / "cache"

    return fill


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_least_recently_used_files_are_deleted(cache):
    folder = cache(v15__a=90, v21__b=80, v21__kernels__c=70, v21__d=60, other=500)
    compiling._evict(folder)
    assert names(folder) == {"tensorflow-2.21/kernels/c", "tensorflow-2.21/d", "other"}
    compiling._evict(folder)
    assert len(names(folder)) == 3


def test_files_used_today_stay(cache):
    folder = cache(v21__a=1, v21__b=20, v21__c=2, v21__d=30)
    compiling._evict(folder)
    assert names(folder) == {"tensorflow-2.21/a", "tensorflow-2.21/b", "tensorflow-2.21/c"}


def test_files_read_today_count_as_used(cache):
    folder = cache(v21__a=90, v21__b=80, v21__c=70)
    path = folder / "tensorflow-2.21/a"
    os.utime(path, (time.time(), path.stat().st_mtime))
    compiling._evict(folder)
    assert names(folder) == {"tensorflow-2.21/a", "tensorflow-2.21/c"}


def test_processes_may_evict_concurrently(cache):
    folder = cache(**{f"v21__{i}": 50 + i for i in range(200)})
    threads = [threading.Thread(target=compiling._evict, args=(folder,)) for _ in range(4)]
    failed = []
    former, threading.excepthook = threading.excepthook, failed.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = former
    assert not failed
    assert names(folder) == {"tensorflow-2.21/0", "tensorflow-2.21/1"}


def test_a_start_limits_the_cache(cache, monkeypatch):
    for variable in ("TF_XLA_FLAGS", "XLA_FLAGS", "CUDA_MODULE_LOADING"):
        monkeypatch.setenv(variable, "")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    folder = cache(v15__a=90, v21__b=80, v21__c=70)
    compiling.use_compile_cache(folder)
    assert names(folder) == {"tensorflow-2.21/b", "tensorflow-2.21/c"}
