"""The optimizers of TensorFlow Addons, and run folders used in both environments."""

import json
import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, tiny_scene
from take_steps import SmallState, small_batch

from mapseg.config import ADDON_OPTIMIZERS, TrainConfig
from mapseg.data.manifest import read_manifest
from mapseg.estimator import Estimator
from mapseg.runs import checkpoints
from mapseg.runs.history import read_history
from mapseg.training import loop as train
from mapseg.training.optimizers import build_optimizer
from mapseg.training.prepare import begin_run

HAS_ADDONS = tf.__version__.startswith("2.15")
needs_addons = pytest.mark.skipif(not HAS_ADDONS, reason="TensorFlow Addons is not installed")


@needs_addons
@pytest.mark.addons
@pytest.mark.parametrize("name", ADDON_OPTIMIZERS)
def test_every_slot_exists_before_the_first_step(name):
    variables = [tf.Variable(tf.ones([3, 2])), tf.Variable(tf.zeros([2]))]
    step = tf.Variable(0, dtype=tf.int64)
    config = TrainConfig(optimizer=name, schedule_steps=10)
    optimizer = build_optimizer(config, step, variables)
    before = len(optimizer.variables())
    optimizer.apply_gradients([(tf.ones_like(v), v) for v in variables])
    assert len(optimizer.variables()) == before
    if name == "lookahead_radam":  # one shared counter: 2 x (m, v) + 2 x slow + one counter
        assert optimizer._optimizer.iterations is optimizer.iterations
    assert int(optimizer.iterations) == 1


@needs_addons
@pytest.mark.addons
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ADDON_OPTIMIZERS)
def test_a_run_trains(name, records_dir, tmp_path):
    options = {**TINY, "optimizer": name, "learning_rate": 0.01, "steps": 10}
    manifest = read_manifest(records_dir)
    run = begin_run(tmp_path / "run", manifest, options)
    train.train(run, manifest, print, evaluating=False)
    history = read_history(run.history_path)
    assert history[-1]["loss"] < history[0]["loss"]


@needs_addons
@pytest.mark.addons
@pytest.mark.parametrize("name", ADDON_OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_every_slot_is_resumed_exactly(name, precision, tmp_path):
    config = TrainConfig(optimizer=name, schedule_steps=20, learning_rate=0.01, precision=precision)
    image, label = small_batch()

    def take_steps(state, steps):
        step = train.make_step(state, config, tf.distribute.get_strategy())
        for _ in range(steps):
            step(image, label)
        return state

    whole = take_steps(SmallState(config), 14)
    cut = take_steps(SmallState(config), 8)  # after Lookahead has synchronized once
    path = checkpoints.write_checkpoint(tmp_path, 8, cut.checkpoint, {}, keep=1)
    resumed = SmallState(config)
    checkpoints.read_state(path, resumed.checkpoint)
    take_steps(resumed, 6)
    assert len(whole.arrays()) >= {"lookahead_radam": 27, "novograd": 20}[name]
    for value, other in zip(whole.arrays(), resumed.arrays(), strict=True):
        np.testing.assert_array_equal(value, other)


_PREDICT = """
import sys
import numpy as np
from mapseg.estimator import Estimator
prediction = Estimator(sys.argv[1], progress=lambda _: None).predict(np.load(sys.argv[2]))
np.save(sys.argv[3], prediction.ids)
"""


def in_environment(python, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([str(python), *arguments], check=True, cwd=ROOT, env=environment)


@needs_addons  # tests both directions, so it need not run in the other environment too
@pytest.mark.addons
def test_a_run_folder_crosses_environments(records_dir, tmp_path):
    other = ROOT / ".venv" / "bin" / "python"
    if not other.exists():
        pytest.skip("the default environment is not built: make env")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    Estimator(ours, progress=print).train(records_dir, evaluating=False, **TINY)
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    places = [f"--records_dir={records_dir}", f"--run_dir={theirs}", "--mode=train"]
    in_environment(other, "train_main.py", *places, *flags)
    np.save(tmp_path / "image.npy", tiny_scene(np.random.default_rng(5))[0])
    image = np.load(tmp_path / "image.npy")
    for number, run in enumerate((theirs, ours)):
        ids_path = str(tmp_path / f"{number}.npy")
        in_environment(other, "-c", _PREDICT, str(run), str(tmp_path / "image.npy"), ids_path)
        ids = Estimator(run, progress=print).predict(image).ids
        assert (ids == np.load(ids_path)).mean() > 0.999
    info = json.loads((checkpoints.find_checkpoint(theirs) / "info.json").read_text())
    assert info["tensorflow"] != tf.__version__
    with pytest.raises(ValueError, match="--init_from"):  # a run resumes only under its own Keras
        Estimator(theirs, progress=print).train(records_dir, steps=6)
