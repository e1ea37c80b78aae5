import functools
from types import SimpleNamespace

import pytest
import tensorflow as tf
from conftest import TINY

from mapseg.data.manifest import read_manifest
from mapseg.training.devices import Workers
from mapseg.training.prepare import begin_run
from mapseg.training.summary import describe


@pytest.fixture
def lines_about(records_dir, tmp_path):
    """Returns the lines of the summary of a run that have some words."""

    def lines_about(words, **options):
        run = begin_run(tmp_path, read_manifest(records_dir), {**TINY, **options})
        state = SimpleNamespace(model=SimpleNamespace(trainable_variables=[]))
        lines = describe(run, state, 2, Workers(tf.distribute.get_strategy()))
        return [line for line in lines if words in line]

    return lines_about


def test_a_warmup_as_long_as_the_schedule_is_reported(lines_about):
    warmup_lines = functools.partial(lines_about, "warmup_steps")
    assert warmup_lines(steps=20, warmup_steps=19) == []
    (line,) = warmup_lines(steps=20, warmup_steps=20)
    assert "WARNING: warmup_steps=20 of a schedule of 20 steps" in line
    assert warmup_lines(steps=20, schedule_steps=10, warmup_steps=10)


def test_steps_after_the_schedule_are_reported_if_their_rate_is_zero(lines_about):
    zero_lines = functools.partial(lines_about, "the learning rate is 0")
    assert zero_lines(steps=20) == zero_lines(steps=20, schedule_steps=20) == []
    (line,) = zero_lines(steps=20, schedule_steps=10)
    assert line.startswith("WARNING: the learning rate is 0 from step 10 on")
    assert zero_lines(steps=20, schedule_steps=10, end_learning_rate=1e-5) == []
