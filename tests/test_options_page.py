"""docs/options.md documents every option of mapseg/config.py."""

import dataclasses
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from mapseg.config import InferConfig, ModelConfig, PredictConfig, TrainConfig

PROGRAM = Path(__file__).parent.parent / "docs" / "write_options.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("write_options", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_as_the_program_writes_it(program):
    assert program.PATH.read_text(encoding="utf-8") == program.page(), (
        f"{program.PATH.name} is out of date. Remedy: python docs/write_options.py"
    )


@pytest.mark.parametrize("kind", [ModelConfig, TrainConfig, PredictConfig, InferConfig])
def test_every_option_is_in_one_group(program, kind):
    names = Counter(
        name
        for _, other, names in program.GROUPS
        if other is kind
        for name in (names.split() or [field.name for field in dataclasses.fields(kind)])
    )
    assert names == Counter(field.name for field in dataclasses.fields(kind))


def test_only_options_have_measurements(program):
    kinds = (ModelConfig, TrainConfig, PredictConfig)
    assert set(program.MEASURED) <= {f.name for kind in kinds for f in dataclasses.fields(kind)}
