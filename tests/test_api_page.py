"""The examples of docs/api.md run in order, as in a script."""

import inspect
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, TINY, tiny_scene

from mapseg.estimator import Estimator

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def trained(run_dir, records_dir, tmp_path, monkeypatch):
    """A folder with the page's records and run; training is replaced by a short one."""
    shutil.copytree(run_dir, tmp_path / "runs" / "first")
    (tmp_path / "records").symlink_to(records_dir)
    monkeypatch.chdir(tmp_path)
    train = Estimator.train
    monkeypatch.setattr(
        Estimator, "train", lambda self, records, **options: train(self, records, **TINY)
    )


@pytest.mark.usefixtures("trained")
def test_the_examples_run():
    frame, _ = tiny_scene(np.random.default_rng(9))
    names = {"frame": frame, "frames": iter([frame, frame[:40]])}
    for example in EXAMPLES:
        exec(compile(example, "docs/api.md", "exec"), names)
    assert names["ids"].shape == frame.shape[:2]
    assert names["result"].ids.shape == (40, 80)  # of the last one
    assert names["scores"].confusion.sum() > 0


def signature(method):
    """Returns `name(parameters)` as the page writes it: without types, functions as dots."""
    shown = []
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        default = ... if inspect.isfunction(parameter.default) else parameter.default
        shown.append(parameter.replace(annotation=parameter.empty, default=default))
    text = str(inspect.Signature(shown)).replace("Ellipsis", "...").replace("'", '"')
    return f"{method.__name__}{text}"


def test_the_signatures_are_those_of_the_methods():
    # If this fails after a change of a method, copy the expected line to the page.
    written = re.findall(r"^- `(\w+\(.*\))`", PAGE, re.MULTILINE)
    names = [line.partition("(")[0] for line in written]
    assert {*names} == {
        name
        for name, _ in inspect.getmembers(Estimator, inspect.isfunction)
        if not name.startswith("_")
    } - {"amended"}  # for train_main.py
    for line, name in zip(written, names, strict=True):
        assert line == signature(getattr(Estimator, name))


def test_every_section_has_an_example():
    assert len(EXAMPLES) >= PAGE.count("\n## ")
    assert all(2 <= len(example.strip().splitlines()) <= 4 for example in EXAMPLES)
