"""The current code reads files of earlier versions; see old_versions/README.md."""

import hashlib
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import SHARED
from old_versions.tiny import machine, pack, state_arrays

from data_prep.audit import AUDIT_NAME, make_audit
from data_prep.conversion import build_records
from data_prep.convert import Resize
from data_prep.make_sample import DEFAULT_COUNTS, write_sample
from data_prep.parts import read_part
from data_prep.sources import find_vistas
from data_prep.verify_records import verify_records
from mapseg.config import PredictConfig
from mapseg.data.batches import read_samples, train_batches
from mapseg.data.manifest import read_manifest
from mapseg.estimator import Estimator
from mapseg.evaluation.evaluate import evaluate
from mapseg.inference.predictor import load_predictor
from mapseg.model.weights import read_weights
from mapseg.runs.checkpoints import find_checkpoint, read_best
from mapseg.runs.folder import check_classes, open_run
from mapseg.runs.history import read_history
from mapseg.stored_json import with_sha256
from mapseg.training.prepare import begin_run
from mapseg.training.state import open_state

OLD = Path(__file__).parent / "old_versions" / "ea21d24"
DEMO = SHARED / "old" / "demo_run_ea21d24"
needs_demo = pytest.mark.skipif(not DEMO.is_dir(), reason=f"{DEMO} is not there")
needs_keras_3 = pytest.mark.skipif(
    keras.__version__.startswith("2."), reason="the exact state is of Keras 3"
)


@pytest.fixture(scope="module")
def expected():
    with np.load(OLD / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def run_dir(tmp_path, tiny_encoder):
    """A copy of the old run, whose network has a tiny encoder."""
    return shutil.copytree(OLD / "run", tmp_path / "run")


def assert_same(actual, old, expected, within):
    """Compares bit by bit on a machine like the original one; elsewhere rounding differs."""
    if machine() == str(expected["machine"]):
        np.testing.assert_array_equal(actual, old)
    np.testing.assert_allclose(actual, old, rtol=0, atol=within)


def assert_same_confusion(actual, old, expected):
    """Allows a few pixels in a thousand to differ."""
    assert_same(actual, old, expected, within=0.005 * np.sum(old))


@pytest.mark.addons
def test_records_are_intact_and_read_as_before(expected):
    records_dir = OLD / "records"
    assert not verify_records(read_manifest(records_dir), print)
    manifest = read_manifest(records_dir)
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "training": 6,
        "validation": 3,
    }
    for split in manifest.splits:
        samples = list(read_samples(records_dir, split).as_numpy_iterator())
        assert [key.decode() for _, _, key in samples] == expected[f"{split}_keys"].tolist()
        labels = b"".join(label.tobytes() for _, label, _ in samples)
        assert hashlib.sha256(labels).hexdigest() == expected[f"{split}_labels"]


def test_the_audit_can_be_rebuilt_from_the_notes_of_shards():
    manifest = read_manifest(OLD / "records")
    parts = {
        name: [read_part(path) for path in manifest.shard_paths(name)] for name in manifest.splits
    }
    facts = {
        name: [fact for part in of_split for fact in part.facts] for name, of_split in parts.items()
    }
    written = json.loads((OLD / "records" / AUDIT_NAME).read_text())
    assert with_sha256(make_audit(manifest, facts)) == written


@pytest.mark.addons
def test_the_batches_of_a_step_are_as_before(expected):
    config = open_run(OLD / "run").train
    images, labels = zip(
        *train_batches(OLD / "records", config, start_step=2).take(2).as_numpy_iterator(),
        strict=True,
    )
    np.testing.assert_array_equal(np.stack(images), expected["batch_images"])
    np.testing.assert_array_equal(np.stack(labels), expected["batch_labels"])


@pytest.mark.addons
def test_a_run_opens_predicts_and_scores_as_before(run_dir, expected):
    estimator = Estimator(run_dir, progress=print)
    assert estimator.run.train.optimizer == "adamw"
    assert read_best(estimator.run.checkpoints_dir).step == 2
    for which in ("best", "latest"):
        for number in range(2):
            ids = estimator.predict(expected[f"frame_{number}"], checkpoint=which).ids
            other = np.mean(ids != expected[f"ids_{number}"])
            assert_same(other, 0, expected, within=0.005)
    scores = estimator.evaluate(OLD / "records", panels=0)
    assert not scores.confusion[:, -1].any()  # every pixel has a class
    assert_same_confusion(scores.confusion[:, :-1], expected["confusion"], expected)


@pytest.mark.addons
def test_an_old_evaluation_is_read_instead_of_repeated(run_dir):
    path = run_dir / "evaluation" / "training.json"
    before = path.read_bytes()
    scores = Estimator(run_dir, progress=print).evaluate(
        OLD / "records", "training", details=False, again=False
    )
    assert scores.confusion[:, :-1].tolist() == json.loads(before)["confusion"]
    assert path.read_bytes() == before


@needs_keras_3
def test_the_state_is_read_and_written_bit_for_bit(run_dir, tmp_path):
    state = open_state(open_run(run_dir), tf.distribute.get_strategy(), print, resumed=True)
    assert int(state.step) == 2
    state.checkpoint.write(str(tmp_path / "again" / "state"))
    old, again = (
        pack(state_arrays(path))
        for path in (run_dir / "checkpoints/step-00000002", tmp_path / "again")
    )
    assert again[0].tolist() == old[0].tolist()
    np.testing.assert_array_equal(again[1], old[1])


@needs_keras_3
def test_a_stopped_run_resumes_to_the_same_numbers(run_dir, expected):
    """Not bit for bit: a step sums in another order than in that version."""
    old_rows = read_history(run_dir / "history.csv")
    Estimator(run_dir, progress=print).train(OLD / "records")
    rows = read_history(run_dir / "history.csv")
    assert rows[: len(old_rows)] == old_rows
    losses = [row["loss"] for row in rows if "loss" in row]
    np.testing.assert_allclose(losses, expected["finished_losses"], atol=1e-4)
    checkpoint = find_checkpoint(run_dir, "4")
    actual = {"weights": read_weights(checkpoint), "state": state_arrays(checkpoint)}
    for kind, arrays in actual.items():
        names, values = pack(arrays)
        assert names.tolist() == expected[f"finished_{kind}_names"].tolist()
        np.testing.assert_allclose(values, expected[f"finished_{kind}"], atol=5e-3)
    written = json.loads((run_dir / "evaluation" / "validation.json").read_text())
    assert written["step"] == 4
    change = np.abs(np.array(written["confusion"])[:, :-1] - expected["finished_confusion"])
    assert change.sum() <= 0.005 * expected["finished_confusion"].sum()


@pytest.mark.addons
def test_the_state_of_another_keras_is_refused(run_dir):
    path = run_dir / "checkpoints" / "step-00000002" / "info.json"
    info = json.loads(path.read_text())
    if not keras.__version__.startswith("2."):
        path.write_text(json.dumps({**info, "keras": "2.15.0"}))
    with pytest.raises(
        ValueError, match=r"must resume under the major version of Keras.*--init_from"
    ):
        Estimator(run_dir, progress=print).train(OLD / "records")


@pytest.mark.addons
def test_records_of_a_newer_format_are_refused(tmp_path):
    shutil.copytree(OLD / "records", tmp_path / "records")
    path = tmp_path / "records" / "manifest.json"
    raw = {**json.loads(path.read_text()), "format_version": 1000}
    del raw["sha256"]
    path.write_text(json.dumps(with_sha256(raw)))
    with pytest.raises(ValueError, match=r"got 1000, of a newer mapseg\. Remedy: convert again"):
        read_manifest(tmp_path / "records")


@pytest.mark.addons
def test_a_run_of_a_newer_format_is_refused(run_dir):
    path = run_dir / "config.json"
    raw = {**json.loads(path.read_text()), "format_version": 1000, "mapseg": "9.0"}
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"got 1000\. Remedy: use the mapseg that wrote it, 9\.0"):
        open_run(run_dir)
    with pytest.raises(ValueError, match="Remedy: use the mapseg that wrote it"):
        begin_run(run_dir, read_manifest(OLD / "records"), {})


@needs_demo
@needs_keras_3
def test_the_exact_state_of_a_real_run_fits():
    state = open_state(open_run(DEMO), tf.distribute.get_strategy(), print, resumed=True)
    assert int(state.step) == 320


@needs_demo
def test_a_real_run_scores_as_before(tmp_path):
    """On the scenes of `make demo`; one training scene is enough."""
    counts = {**DEFAULT_COUNTS, "training": 1, "testing": 0, "frames": 0}
    write_sample(tmp_path / "sample", counts, seed=1, progress=print)
    source = find_vistas(tmp_path / "sample")
    manifest = build_records(source, tmp_path / "records", Resize(256), workers=1, progress=print)
    run = Estimator(DEMO).run
    check_classes(run, manifest.classes, manifest.records_dir)
    predictor = load_predictor(run, PredictConfig(), find_checkpoint(DEMO))
    scores = evaluate(predictor, manifest, "validation", run.label_set, print)
    old = np.array(json.loads((DEMO / "evaluation" / "validation.json").read_text())["confusion"])
    assert scores.confusion.sum() == old.sum()
    # Rounding differs between machines, and encoding between versions of Pillow.
    assert np.abs(scores.confusion[:, :-1] - old).sum() < 0.005 * old.sum()
