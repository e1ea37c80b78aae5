import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from mapseg.data.batches import CropStream
from mapseg.data.manifest import read_manifest
from mapseg.runs import checkpoints
from mapseg.runs.history import read_history
from mapseg.training import loop as train
from mapseg.training.prepare import begin_run


def quiet(_):
    pass


def check_replay(path, records_dir, run, step):
    """Checks that the written batch and keys are those of the step; returns the keys."""
    stream = CropStream(read_manifest(records_dir), run.train, run.label_set)
    with np.load(path) as written:
        image, label = next(stream.batches(step).as_numpy_iterator())
        np.testing.assert_array_equal(written["image"], image)
        np.testing.assert_array_equal(written["label"], label)
        assert written["keys"].tolist() == stream.keys(step)
        return written["keys"].tolist()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_loss_that_is_not_finite_stops_with_a_remedy(records_dir, tmp_path, on_nan):
    # The first gradient is finite, but the new weights are not: every later step is non-finite.
    options = {**TINY, "learning_rate": 1e30, "log_steps": 1, "on_nan": on_nan, "steps": 25}
    run = begin_run(tmp_path / "run", read_manifest(records_dir), options)
    step = {"stop": 1, "skip": 20}[on_nan]  # twenty in a row are too many
    expected = rf"of step {step} is not finite.*learning_rate"
    with pytest.raises(FloatingPointError, match=expected) as error:
        train.train(run, read_manifest(records_dir), quiet, evaluating=False)
    path = tmp_path / f"run/not_finite/step-{step:08d}.npz"
    keys = check_replay(path, records_dir, run, step)
    assert f"Its samples: {', '.join(keys)}; its batch: " in str(error.value)
    # The same folder can be used with the remedy: nothing was saved yet.
    again = begin_run(tmp_path / "run", read_manifest(records_dir), TINY)
    assert again.train.learning_rate == 0.01


@pytest.fixture
def step_2_is_not_finite(monkeypatch):
    def make_step(*arguments):
        real = make_real(*arguments)

        def step(image, label):
            number = tf.identity(arguments[0].step)
            loss, finite, norm = real(image, label)
            return loss, tf.logical_and(finite, number != 2), norm

        return step

    make_real = train.make_step
    monkeypatch.setattr(train, "make_step", make_step)


@pytest.mark.usefixtures("small", "step_2_is_not_finite")
def test_a_step_that_is_not_finite_is_reported_before_the_next_save(records_dir, tmp_path):
    options = {**TINY, "log_steps": 4, "checkpoint_steps": 3}
    run = begin_run(tmp_path / "run", read_manifest(records_dir), options)
    with pytest.raises(FloatingPointError, match="of step 2 is not finite"):
        train.train(run, read_manifest(records_dir), quiet, evaluating=False)
    assert not checkpoints.saved_steps(run.checkpoints_dir)


@pytest.mark.usefixtures("small", "step_2_is_not_finite")
def test_a_step_that_is_not_finite_may_be_skipped(records_dir, tmp_path):
    lines = []
    run = begin_run(tmp_path / "run", read_manifest(records_dir), {**TINY, "on_nan": "skip"})
    train.train(run, read_manifest(records_dir), lines.append, evaluating=False)
    assert sum(line.startswith("skipped: the loss or a gradient of step 2") for line in lines) == 1
    check_replay(tmp_path / "run/not_finite/step-00000002.npz", records_dir, run, 2)
    assert read_history(run.history_path)[-1]["skipped_steps"] == 1
