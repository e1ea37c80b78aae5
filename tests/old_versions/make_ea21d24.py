"""Makes records, a run that was stopped half-way, and what is expected of them, by commit ea21d24.

To be run in a checkout of that commit, with an environment that its pyproject.toml asks for:

    cd CHECKOUT && PYTHON /path/to/tests/old_versions/make_ea21d24.py OUT
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path.cwd()
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]  # before what the environment installed

from conftest import make_tiny_records, tiny_scene  # noqa: E402, I001  first: it hides the GPUs

import cv2  # noqa: E402
import mapseg.model  # noqa: E402
import numpy as np  # noqa: E402
from mapseg.blocks import conv  # noqa: E402
from mapseg.checkpoints import read_history, read_weights  # noqa: E402
from mapseg.encoders import Encoder, Normalization  # noqa: E402
from mapseg.estimator import Estimator  # noqa: E402
from mapseg.pipeline import train_batches  # noqa: E402
from mapseg.records import read_samples  # noqa: E402
from tiny import machine, pack, state_arrays, tiny_backbone  # noqa: E402

# The manifest names the folders that it was made from.
NEUTRAL = Path("/tmp/mapseg_fixture")
OPTIONS = {
    "encoder": "mobilenet_v2",
    "encoder_weights": "none",
    "decoder_channels": 4,
    "batch_norm_momentum": 0.5,
    # Of such sizes and scales no label pixel has its centre between two of the source: there that
    # version took either of them, by the version of OpenCV.
    "crop_height": 32,
    "crop_width": 32,
    "scale_step": 0.5,
    "class_balance": 0.5,
    "batch_size": 2,
    "steps": 4,
    "loss": "ce+lovasz",
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "clip_norm": 1.0,
    "precision": "float32",
    "seed": 1,
    "checkpoint_steps": 2,
    "eval_steps": 2,
    "eval_panels": 0,
    "log_steps": 1,
    "strategy": "one_device",
}
STOPPED, STEPS = 2, 4
FRAME_SIZES = ((60, 80), (51, 97))  # like those that were trained on, and one that is resized


def build_tiny_encoder(config):
    return Encoder(tiny_backbone(config, conv), Normalization((127.5, 127.5, 127.5), 127.5))


def stopping_after(steps):
    """Makes a `stopping` that is true after some steps: it is asked before each."""
    asked = iter(range(steps))
    return lambda: next(asked, None) is None


def make_records(records_dir):
    NEUTRAL.mkdir()
    try:
        shutil.copytree(make_tiny_records(NEUTRAL), records_dir)
    finally:
        shutil.rmtree(NEUTRAL)
    (records_dir / ".parts" / "lock").unlink()
    (records_dir / "audit.png").unlink()


def make_runs(records_dir, run_dir, folder):
    """Trains to the end at once, and with a stop; returns the former's folder."""
    whole = folder / "whole"
    Estimator(whole).train(records_dir, **OPTIONS)
    stopped = Estimator(run_dir)
    stopped.train(records_dir, stopping=stopping_after(STOPPED), **OPTIONS)
    resumed = shutil.copytree(run_dir, folder / "resumed")
    Estimator(resumed).train(records_dir)
    finished, again = finish(whole), finish(resumed)
    assert all(np.array_equal(finished[name], again[name]) for name in finished), "other bits"

    stopped.evaluate(records_dir, "training", panels=0)  # beside that of the training itself
    shutil.rmtree(run_dir / "tensorboard")
    for name in (".lock", "loss.png"):
        (run_dir / name).unlink()
    return finished


def finish(run_dir):
    """What a run has come to."""
    checkpoint = run_dir / "checkpoints" / f"step-{STEPS:08d}"
    weights_names, weights = pack(read_weights(checkpoint))
    state_names, state = pack(state_arrays(checkpoint))
    history = read_history(run_dir / "history.csv")
    return {
        "weights_names": weights_names,
        "weights": weights,
        "state_names": state_names,
        "state": state,
        "losses": np.array([row["loss"] for row in history if "loss" in row]),
        "confusion": read_confusion(run_dir),
    }


def read_confusion(run_dir):
    path = run_dir / "evaluation" / "validation.json"
    return np.array(json.loads(path.read_text(encoding="utf-8"))["confusion"])


def look_at_records(records_dir, config):
    """What is read of the records: samples, and the batches after the stop."""
    contents = {}
    for split in ("training", "validation"):
        samples = list(read_samples(records_dir, split).as_numpy_iterator())
        labels = b"".join(label.tobytes() for _, label, _ in samples)
        contents[f"{split}_keys"] = [key.decode() for _, _, key in samples]
        contents[f"{split}_labels"] = hashlib.sha256(labels).hexdigest()
    batches = train_batches(records_dir, config, STOPPED).take(STEPS - STOPPED)
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return {**contents, "batch_images": np.stack(images), "batch_labels": np.stack(labels)}


def main(out):
    assert Path(mapseg.model.__file__) == CHECKOUT / "mapseg" / "model.py", mapseg.model.__file__
    mapseg.model.build_encoder = build_tiny_encoder
    out.mkdir(parents=True)
    records_dir, run_dir = out / "records", out / "run"
    make_records(records_dir)
    with tempfile.TemporaryDirectory() as folder:
        finished = make_runs(records_dir, run_dir, Path(folder))
    estimator = Estimator(run_dir)
    expected = {
        "machine": machine(),
        "opencv": cv2.__version__,
        "confusion": read_confusion(run_dir),
        **{f"finished_{name}": value for name, value in finished.items()},
        **look_at_records(records_dir, estimator.run.train),
    }
    rng = np.random.default_rng(24)
    for number, size in enumerate(FRAME_SIZES):
        frame, _ = tiny_scene(rng, *size)
        expected |= {f"frame_{number}": frame, f"ids_{number}": estimator.predict(frame).ids}
    np.savez_compressed(out / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
