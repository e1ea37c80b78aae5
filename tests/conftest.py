import json
import os
import random
import re
import shutil
import socket
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from PIL import Image

from data_prep.conversion import build_records
from data_prep.convert import Resize
from data_prep.sources import find_vistas

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # data that is not part of the project
LABELS = [
    {"name": "flat--road", "color": [128, 64, 128], "evaluate": True},
    {"name": "marking--general", "color": [255, 255, 255], "evaluate": True},
    {"name": "nature--sky", "color": [70, 130, 180], "evaluate": True},
    {"name": "void--unlabeled", "color": [0, 0, 0], "evaluate": False},
]
# Options of a training run that takes seconds on a CPU; tests change single ones.
TINY = {
    "encoder": "mobilenet_v2",
    "encoder_weights": "none",
    "decoder_channels": 8,
    "crop_height": 33,
    "crop_width": 33,
    "batch_size": 2,
    "steps": 4,
    "log_steps": 2,
    "precision": "float32",
}


def tiny_scene(rng, height=60, width=80):
    """Sky above a road with a marking: [H, W, 3] uint8 and source ids [H, W] uint8."""
    horizon, left = rng.integers(20, 35), rng.integers(10, width - 20)
    label = np.zeros([height, width], np.uint8)
    label[:horizon] = 2
    label[horizon:, left : left + 9] = 1
    label[-3:] = 3
    colors = np.array([[90, 90, 90], [240, 240, 240], [100, 160, 220], [20, 20, 20]])
    image = colors[label] + rng.integers(-10, 11, [height, width, 1])
    return np.clip(image, 0, 255).astype(np.uint8), label


def make_tiny_records(root, seed=0):
    """Writes records of six training and three validation scenes with four classes."""
    rng = np.random.default_rng(seed)
    for split, count in (("training", 6), ("validation", 3)):
        for kind in ("images", "labels"):
            (root / "vistas" / split / kind).mkdir(parents=True)
        for i in range(count):
            image, label = tiny_scene(rng)
            Image.fromarray(image).save(root / f"vistas/{split}/images/{split}-{i}.jpg")
            Image.fromarray(label).save(root / f"vistas/{split}/labels/{split}-{i}.png")
    (root / "vistas" / "config_v1.2.json").write_text(json.dumps({"labels": LABELS}))
    source = find_vistas(root / "vistas")
    build_records(source, root / "records", Resize(), workers=1, progress=lambda _: None)
    return root / "records"


@pytest.fixture(autouse=True)
def reset_seeds_and_precision():
    """Resets random seeds and Keras's precision, so that tests do not depend on their order.

    Fixtures of a module or session run earlier: those that build networks must set a seed.
    """
    import keras

    keras.utils.set_random_seed(1)  # Python's and NumPy's too
    keras.mixed_precision.set_global_policy("float32")


def pytest_configure(config):
    """Runs tests on the CPU: the same everywhere, and a GPU stays free for its user."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="session")
def records_dir(tmp_path_factory):
    """Records shared by all tests, next to their source `vistas`; tests must not change them."""
    root = tmp_path_factory.mktemp("tiny")
    records_dir = make_tiny_records(root)
    before = contents(root)
    yield records_dir
    assert contents(root) == before, "a test has changed the shared records"


def page_examples(page, section):
    """Returns the Python examples of a section of a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def use_tiny_encoder(patch):
    """Replaces MobileNetV2, as `tiny_encoder` does, for fixtures of a wider scope."""
    from train_tiny import build_tiny_encoder

    from mapseg.model import deeplab

    patch.setattr(deeplab, "build_encoder", build_tiny_encoder)


@pytest.fixture(scope="session")
def tiny_run(records_dir, tmp_path_factory):
    from mapseg.estimator import Estimator

    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoder(patch)
        Estimator(run_dir, progress=lambda _: None).train(records_dir, **TINY)
    before = contents(run_dir)
    yield run_dir
    assert contents(run_dir) == before, "a test has changed the shared run"


@pytest.fixture
def tiny_encoder(monkeypatch):
    """Replaces MobileNetV2 by an encoder of three convolutions."""
    use_tiny_encoder(monkeypatch)


@pytest.fixture
def run_dir(tiny_run, tiny_encoder):
    """A run that was trained for four steps and evaluated; tests must not change it.

    Its network has a tiny encoder, which the test has too. Other processes must replace the encoder
    themselves, or run tests/train_tiny.py.
    """
    return tiny_run


@pytest.fixture
def own_run_dir(run_dir, tmp_path):
    """A copy of that run for one test, which may change it."""
    return shutil.copytree(run_dir, tmp_path / "own_run")


@pytest.fixture
def small(monkeypatch):
    """Replaces the network by one of two layers."""
    from take_steps import SmallState

    from mapseg.training import state

    monkeypatch.setattr(state, "build_state", lambda run, progress, fresh: SmallState(run.train))


def free_ports(count):
    """Returns free ports of this machine, outside the range for outgoing connections.

    They are drawn without the test's seed, since other processes may be drawing at the same time.
    """
    ports, draw = [], random.SystemRandom()
    while len(ports) < count:
        port = draw.randrange(10_000, 32_000)
        try:
            socket.create_server(("", port)).close()
        except OSError:
            continue
        if port not in ports:
            ports.append(port)
    return ports


def connected(address):
    """Connects to a worker as soon as it listens."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            return socket.create_connection((host, int(port)))
        except ConnectionRefusedError:
            time.sleep(0.02)


def tf_config(ports, index):
    """Returns the environment variable of a worker on this machine."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task})}


@pytest.hookimpl(tryfirst=True)  # before pytest-random-order shuffles, if it is enabled
def pytest_collection_modifyitems(items):
    """Runs the long files first, so that parallel workers finish at the same time."""
    long = (
        "test_workers",
        "test_loop",
        "test_notebook",
        "test_onnx_file",
        "test_saved_model",
        "test_readme",
        "test_recipes",
        "test_step",
        "test_recompute",
        "test_published",
        "test_api_page",
        "test_doctor",
        "test_addons",
        "test_build_records",
    )
    items.sort(key=lambda item: item.path.stem not in long)
