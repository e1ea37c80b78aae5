"""benchmarks/operations.py reads TensorFlow's profile."""

from types import SimpleNamespace

import operations
import pytest
from operations import Operation
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

KERNEL = "void cub::DeviceReduceKernel<cub::Policy<float>, float*>(float*)"
VALUES = {"encoder": "x", "mode": "infer", "batch": 1, "calls": 2, "top": 1, "by_name": False}


def write(path, planes):
    """Writes a profile: by plane, events (name, milliseconds, operation on a GPU)."""
    space = XSpace()
    for plane_name, events in planes.items():
        plane = space.planes.add(name=plane_name)
        plane.stat_metadata[1].name = "tf_op"
        line = plane.lines.add()
        for number, (name, ms, operation) in enumerate(events):
            plane.event_metadata[number].name = name
            event = line.events.add(metadata_id=number, duration_ps=ms * 10**9)
            if operation and number % 2:  # by reference or by value
                plane.stat_metadata[100 + number].name = operation
                event.stats.add(metadata_id=1, ref_value=100 + number)
            elif operation:
                event.stats.add(metadata_id=1, str_value=operation)
    path.write_bytes(space.SerializeToString())
    return path


def test_operations_are_those_of_the_cpu_or_the_kernels_of_the_gpu(tmp_path):
    host = [
        ("block/conv:Conv2D", 3, ""),
        ("EagerLocalExecute: graph", 9, ""),
        ("KernelAndDeviceFunc::Run", 9, ""),
        ("graph", 9, ""),
    ]
    path = write(tmp_path / "cpu.xplane.pb", {"/host:CPU": host})
    assert list(operations.read_operations(path)) == [Operation("block/conv", "Conv2D", 3)]
    kernels = [("a<2>", 2, "block/conv:Conv2D"), ("b", 4, "relu:Relu"), (KERNEL, 1, "")]
    path = write(tmp_path / "gpu.xplane.pb", {"/host:CPU": host, "/device:GPU:0": kernels})
    assert list(operations.read_operations(path)) == [
        Operation("block/conv", "Conv2D", 2),
        Operation("relu", "Relu", 4),
        Operation(KERNEL, KERNEL, 1),
    ]


def test_the_table_adds_up_operations_of_a_kind_in_a_call():
    ran = [Operation("a", "Conv2D", 6), Operation("b", "Conv2D", 2), Operation("a", "Relu", 2)]
    title, *rows = operations.table(ran, 0.012, SimpleNamespace(**VALUES))
    assert title == "x, infer, batch 1: 6.0 ms per call, operations 5.0 ms"
    assert rows[2:] == ["| Conv2D | 1 | 4.00 | 80.0% |"]
    *_, row = operations.table(ran[1:], 0.012, SimpleNamespace(**VALUES | {"by_name": True}))
    assert row == "| b | 0.5 | 1.00 | 50.0% |"


def test_a_profile_without_operations_is_an_error():
    with pytest.raises(RuntimeError, match=r"it recorded none\. Remedy: "):
        operations.table([], 1, SimpleNamespace(**VALUES))


@pytest.mark.parametrize("mode", operations.MODES)
def test_a_prediction_and_a_step_are_profiled(mode, capsys):
    values = operations.define_flags()
    arguments = ["--encoder=mobilenet_v2", "--size=33x65", "--crop=33", "--batch=2", "--calls=1"]
    values(["operations.py", f"--mode={mode}", *arguments])
    assert operations.work(values) == 0
    title, header, _, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith(f"mobilenet_v2, {mode}, batch 2: ")
    assert header == "| operation | count | ms | share |"
    assert len(rows) == 20
    assert any("Conv2D" in row for row in rows)


@pytest.mark.parametrize("size", ["375", "375x", "axb", "0x64"])
def test_a_bad_size_is_named(size):
    values = operations.define_flags()
    values(["operations.py", "--encoder=mobilenet_v2", f"--size={size}"])
    what = (
        "two positive pixel counts" if "0x" in size else "HEIGHTxWIDTH in pixels, such as 384x512"
    )
    with pytest.raises(ValueError, match=f"size must be {what}; got {size}"):
        operations.work(values)
