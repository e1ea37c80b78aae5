"""What TensorBoard gets from a training run."""

import numpy as np
import pytest
from conftest import TINY
from runs.runs_by_hand import make_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from mapseg.data.manifest import read_manifest
from mapseg.runs.history import read_history
from mapseg.training.journal import Journal
from mapseg.training.loop import train
from mapseg.training.prepare import begin_run


@pytest.mark.usefixtures("small")
def test_tensorboard_gets_the_columns_of_the_history_at_their_steps(records_dir, tmp_path):
    manifest = read_manifest(records_dir)
    options = {**TINY, "steps": 5, "log_steps": 1, "eval_steps": 3}
    run = begin_run(tmp_path / "run", manifest, options)
    train(run, manifest, print)
    events = EventAccumulator(str(run.run_dir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    scalars = {
        tag: {e.step: float(tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }
    every, scored = [1, 2, 3, 4, 5], [3, 5]
    assert {tag: list(values) for tag, values in scalars.items()} == {
        "loss": every,
        "learning_rate": every,
        "loss_scale": every,
        "skipped_steps": every,
        "images_per_s": every[1:],  # not for the first step: it compiles
        "mean_iou": scored,
        "pixel_accuracy": scored,
    }
    rows = read_history(run.history_path)
    for tag, values in scalars.items():
        expected = [row[tag] for row in rows if tag in row]
        np.testing.assert_allclose(list(values.values()), expected, rtol=1e-6, err_msg=tag)


def test_other_workers_than_the_first_write_nothing(tmp_path):
    lines = []
    journal = Journal(make_run(tmp_path / "run"), lines.append, is_first=False, step=0)
    journal.log(1, [0.5], 1.0, 0)
    journal.record({"step": 1, "mean_iou": 0.5})
    journal.plot()
    assert len(lines) == 1
    assert not list(tmp_path.rglob("*"))
