from types import SimpleNamespace

import tensorflow as tf
from conftest import TINY

from mapseg.data.manifest import read_manifest
from mapseg.training.devices import Workers
from mapseg.training.prepare import begin_run
from mapseg.training.summary import describe


def test_a_warmup_as_long_as_the_schedule_is_reported(records_dir, tmp_path):
    def warmup_lines(**options):
        run = begin_run(tmp_path, read_manifest(records_dir), {**TINY, **options})
        state = SimpleNamespace(model=SimpleNamespace(trainable_variables=[]))
        lines = describe(run, state, 2, Workers(tf.distribute.get_strategy()))
        return [line for line in lines if "warmup_steps" in line]

    assert warmup_lines(steps=20, warmup_steps=19) == []
    (line,) = warmup_lines(steps=20, warmup_steps=20)
    assert "WARNING: warmup_steps=20 of a schedule of 20 steps" in line
    assert warmup_lines(steps=20, schedule_steps=10, warmup_steps=10)
