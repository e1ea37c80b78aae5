"""docs/options.md documents every option of mapseg/config.py."""

import dataclasses
from collections import Counter

import pytest
import write_options

from mapseg.config import InferConfig, ModelConfig, PredictConfig, TrainConfig


def test_the_page_is_as_the_program_writes_it():
    assert write_options.PATH.read_text(encoding="utf-8") == write_options.page(), (
        f"{write_options.PATH.name} is out of date. Remedy: python docs/write_options.py"
    )


@pytest.mark.parametrize("kind", [ModelConfig, TrainConfig, PredictConfig, InferConfig])
def test_every_option_is_in_one_group(kind):
    names = Counter(
        name
        for _, other, names in write_options.GROUPS
        if other is kind
        for name in (names.split() or [field.name for field in dataclasses.fields(kind)])
    )
    assert names == Counter(field.name for field in dataclasses.fields(kind))


def test_only_options_have_measurements():
    kinds = (ModelConfig, TrainConfig, PredictConfig)
    assert set(write_options.MEASURED) <= {
        f.name for kind in kinds for f in dataclasses.fields(kind)
    }
