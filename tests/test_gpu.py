"""A step, a resume and an inference on a GPU: pytest -m gpu, on a machine that has one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, tiny_scene
from take_steps import SmallState, small_batch

from mapseg.config import TrainConfig
from mapseg.estimator import Estimator
from mapseg.machine import gpus
from mapseg.runs import checkpoints
from mapseg.runs.history import read_history
from mapseg.training.step import make_step

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    if not gpus():
        pytest.skip("TensorFlow finds no GPU")


@pytest.mark.parametrize("xla", ["off", "on"])
def test_steps_on_a_gpu_lower_the_loss(xla):
    config = TrainConfig(schedule_steps=100, learning_rate=0.05, xla=xla)
    state = SmallState(config)
    step = make_step(state, config, tf.distribute.get_strategy())
    losses = []
    for _ in range(30):
        loss, finite, _ = step(*small_batch())
        assert bool(finite)
        losses.append(float(loss))
    assert "GPU" in loss.device
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.usefixtures("tiny_encoder")
def test_a_run_resumes_on_a_gpu(records_dir, tmp_path):
    options = {**TINY, "steps": 8, "schedule_steps": 8}
    Estimator(tmp_path / "whole", progress=print).train(records_dir, **options)
    lines = []
    estimator = Estimator(tmp_path / "cut", progress=lines.append)
    estimator.train(records_dir, **{**options, "steps": 4})
    assert checkpoints.saved_steps(tmp_path / "cut" / "checkpoints") == [4]
    lines.clear()
    estimator.train(records_dir, steps=8)
    assert any("from step 4" in line for line in lines)
    assert checkpoints.saved_steps(tmp_path / "cut" / "checkpoints")[-1] == 8
    whole, cut = (
        [r for r in read_history(tmp_path / name / "history.csv") if "loss" in r]
        for name in ("whole", "cut")
    )
    assert [row["step"] for row in cut] == [2, 4, 6, 8]
    # A GPU adds up in any order: not to the bit.
    np.testing.assert_allclose([r["loss"] for r in cut], [r["loss"] for r in whole], rtol=0.02)


_ON_THE_CPU = """
import sys
import numpy as np
from train_tiny import build_tiny_encoder
from mapseg.estimator import Estimator
from mapseg.model import deeplab
deeplab.build_encoder = build_tiny_encoder
estimator = Estimator(sys.argv[1], progress=lambda _: None)
np.save(sys.argv[3], estimator.predict(np.load(sys.argv[2])).ids)
"""


@pytest.mark.usefixtures("tiny_encoder")
@pytest.mark.parametrize(("precision", "most"), [("float32", 0.01), ("mixed_bfloat16", 0.03)])
def test_inference_on_a_gpu_gives_the_ids_of_the_cpu(precision, most, records_dir, tmp_path):
    options = {**TINY, "steps": 60, "log_steps": 20, "precision": precision}
    estimator = Estimator(tmp_path / "run", progress=print)
    estimator.train(records_dir, evaluating=False, **options)
    image, _ = tiny_scene(np.random.default_rng(9))
    np.save(tmp_path / "image.npy", image)
    places = [str(tmp_path / name) for name in ("run", "image.npy", "ids.npy")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(
        [sys.executable, "-c", _ON_THE_CPU, *places],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    ids = np.load(tmp_path / "ids.npy")
    assert len(np.unique(ids)) > 1
    assert np.mean(estimator.predict(image).ids != ids) < most
