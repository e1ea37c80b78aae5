import threading

import pytest

from mapseg import progress


def test_progress_reports_rate_and_time_left(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 4.5, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = []
    report = progress.make_reporter(10, 110, "pairs", lines.append)
    for done in (2, 8, 9, 20):
        report(done)
    assert lines == [
        "18/110 pairs, 2.0 pairs/s, 46s left",
        "30/110 pairs, 2.0 pairs/s, 40s left",
    ]


@pytest.mark.parametrize(
    ("secs", "text"),
    [(45.2, "45s"), (59.6, "1m00s"), (725, "12m05s"), (12_000, "3h20m"), (0, "0s")],
)
def test_durations_are_formatted(secs, text):
    assert progress.duration(secs) == text


def test_long_work_reports_its_elapsed_time_and_its_duration(monkeypatch):
    monkeypatch.setattr(progress, "_ELAPSED_SECS", 0.01)
    lines, elapsed = [], threading.Event()

    def note(line):
        lines.append(line)
        if line.endswith("so far"):
            elapsed.set()

    with progress.reporting("compiling", note):
        assert elapsed.wait(60)
    assert lines[0] == "compiling ..."
    assert set(lines[1:-1]) == {"compiling: 0s so far"}
    assert lines[-1] == "compiling took 0s"


def test_without_stderr_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", None)
    progress.show("a line")
