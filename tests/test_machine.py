import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mapseg import machine
from mapseg.machine import DriverReport, Gpu


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder in place of the root folder."""
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.lstrip("/"))
    for folder in ("proc/self", "sys/fs/cgroup"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_gpus_have_names_and_defaults_for_missing_details(monkeypatch):
    assert machine.gpus() == []
    details = {"a": {"device_name": "A100", "compute_capability": (8, 0)}, "b": {}}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(details))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    assert machine.gpus() == [Gpu("A100", (8, 0)), Gpu("GPU", (0, 0))]


def test_the_driver_is_queried_and_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver_reports() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '550.54.15, 9000, 80000'\necho '550.54.15, 3, 80000'\n")
    program.chmod(0o755)
    assert machine.driver_reports() == [
        DriverReport("550.54.15", 9000, 80000),
        DriverReport("550.54.15", 3, 80000),
    ]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert machine.driver_reports() == []


def test_available_memory_respects_the_machine_and_its_container(root):
    assert machine.available_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (root / "proc/meminfo").write_text("MemTotal:    9000 kB\nMemAvailable:    5000 kB\n")
    assert machine.available_bytes() == 5000 * 1024
    group = root / "sys/fs/cgroup"
    (group / "memory.max").write_text("max\n")
    assert machine.available_bytes() == 5000 * 1024
    (group / "memory.max").write_text("4096000\n")
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")  # reclaimed when needed
    assert machine.available_bytes() == 4096000 - (3000000 - 1000000)


def test_taken_memory_is_read_and_0_if_the_system_does_not_report_it(root):
    assert machine.used_bytes("peak") == 0
    (root / "proc/self/status").write_text("VmHWM:\t    90 kB\nVmRSS:\t    70 kB\n")
    assert machine.used_bytes("peak") == 90 * 1024
    assert machine.used_bytes("current") == 70 * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_can_be_reset():
    machine.reset_peak()
    before = machine.used_bytes("peak")
    array = np.ones(300_000_000, np.uint8)
    held = machine.used_bytes("current")
    assert held > before + 200e6
    del array
    assert machine.used_bytes("peak") > held - 20e6  # the kernel counts in batches
    machine.reset_peak()
    assert machine.used_bytes("current") < held - 200e6
    assert machine.used_bytes("peak") < held - 200e6


def test_memory_that_a_step_takes_again_and_again_is_counted():
    """Although oneDNN's pool keeps it between the steps."""
    add = tf.function(lambda n: tf.reduce_sum(tf.ones([n]) + tf.range(n, dtype=tf.float32)))
    for _ in range(2):
        machine.reset_peak()
        before = machine.allocated_bytes("current")
        add(tf.constant(50_000_000)).numpy()
        assert machine.allocated_bytes("peak") > before + 150e6
    assert machine.allocated_bytes("current") < before + 100e6


def test_without_statistics_of_tensorflow_the_process_is_measured(monkeypatch):
    def refuse(device):
        raise ValueError(f"no statistics of {device}")

    monkeypatch.setattr(tf.config.experimental, "get_memory_info", refuse)
    monkeypatch.setattr(machine, "process_bytes", {"current": 5, "peak": 8}.get)
    assert (machine.allocated_bytes("current"), machine.allocated_bytes("peak")) == (5, 8)


def test_without_a_gpu_its_limit_is_0():
    assert machine.gpu_limit_bytes() == 0


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_the_memory_of_an_outer_control_group_counts(limit, used, tmp_path, monkeypatch):
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "job" / limit).write_text("5000000\n")
    (tmp_path / "job" / used).write_text("2000000\n")
    (tmp_path / "job" / "memory.stat").write_text("anon 7\ninactive_file 1000000\n")
    monkeypatch.setattr(machine, "_control_groups", lambda _: [inner, inner.parent, tmp_path])
    assert machine.available_bytes() == 4_000_000


def test_hardware_is_that_of_the_cpu_and_the_gpus(root):
    assert machine.hardware() == ""
    (root / "proc/cpuinfo").write_text(
        2 * "processor\t: 0\nflags\t\t: fpu avx2\nvmx flags\t: vnmi\ncpu MHz\t\t: 1.5\n\n"
    )
    assert machine.hardware() == "fpu avx2"
    for number, model in enumerate(("H100", "A100", "H100")):
        path = root / f"proc/driver/nvidia/gpus/{number}/information"
        path.parent.mkdir(parents=True)
        path.write_text(f"Model: \t\t NVIDIA {model}\nIRQ:   \t\t 7\n")
    assert machine.hardware() == "fpu avx2\nNVIDIA A100\nNVIDIA H100"
