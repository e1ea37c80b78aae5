import contextlib
import gc
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from mapseg.config import PredictConfig
from mapseg.data.batches import read_samples
from mapseg.data.manifest import read_manifest
from mapseg.evaluation.evaluate import evaluate, read_evaluation, write_evaluation
from mapseg.evaluation.scores import Scores
from mapseg.inference.predictor import Predictor
from mapseg.labels import make_label_set
from mapseg.model.network import Network


def by_color(images):
    """A network for the tiny scenes: grey road, white marking, blue sky."""
    colors = tf.constant([[90.0, 90, 90], [240, 240, 240], [100, 160, 220]])
    pixels = tf.cast(images, tf.float32)[..., tf.newaxis, :]
    return -tf.norm(pixels - colors, axis=-1)


def test_a_network_that_knows_the_colours_scores_high(records_dir, tmp_path):
    manifest = read_manifest(records_dir)
    labels = make_label_set(manifest.classes, "all")
    predictor = Predictor(Network(by_color, 1), PredictConfig(scale="1", tile_px=65), 80)
    panels_dir = tmp_path / "panels"
    panels = {}
    scores = evaluate(
        predictor,
        manifest,
        "validation",
        labels,
        print,
        panels_dir=panels_dir,
        panels=2,
        on_panel=panels.__setitem__,
    )
    assert scores.mean_iou > 0.9
    assert scores.pixel_accuracy > 0.95
    assert scores.confusion.sum() == sum(
        (label != 255).sum()
        for _, label, _ in read_samples(records_dir, "validation").as_numpy_iterator()
    )
    pictures = sorted(panels_dir.glob("*.jpg"))
    assert [p.name for p in pictures] == ["validation-0.jpg", "validation-1.jpg"]
    assert np.asarray(Image.open(pictures[0])).std() > 10
    assert list(panels) == ["validation-0", "validation-1"]
    assert panels["validation-0"].shape == np.asarray(Image.open(pictures[0])).shape


def test_an_evaluation_is_read_back_if_all_facts_match(records_dir, tmp_path):
    labels = make_label_set(read_manifest(records_dir).classes, "all")
    scores = Scores(np.arange(9).reshape(3, 3), labels)
    write_evaluation(tmp_path, "val", scores, checkpoint="step-2", scale="1")
    again = read_evaluation(tmp_path, "val", labels, checkpoint="step-2", scale="1")
    np.testing.assert_array_equal(again.confusion, scores.confusion)
    for facts in ({"scale": "2"}, {"records_digest": None}):
        assert read_evaluation(tmp_path, "val", labels, checkpoint="step-2", **facts) is None
    assert read_evaluation(tmp_path, "test", labels, checkpoint="step-2") is None
    for damaged in ("{", "[]", '{"checkpoint": "step-2", "confusion": [[1]]}'):
        (tmp_path / "evaluation" / "val.json").write_text(damaged)
        assert read_evaluation(tmp_path, "val", labels, checkpoint="step-2") is None


def test_only_the_first_samples_are_scored(records_dir):
    manifest = read_manifest(records_dir)
    labels = make_label_set(manifest.classes, "all")
    predictor = Predictor(Network(by_color, 1), PredictConfig(scale="1"), 80)
    one = evaluate(predictor, manifest, "validation", labels, print, max_samples=1)
    assert one.confusion.sum() == 57 * 80  # the last three rows are unlabeled


def test_an_evaluation_closes_the_shards_that_it_opened(records_dir):
    def open_shards():
        count = 0
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed
                count += ".tfrecord" in str(link.readlink())
        return count

    def evaluate_once():
        evaluate(predictor, manifest, "validation", labels, lambda _: None)
        gc.collect()
        return open_shards()

    manifest = read_manifest(records_dir)
    labels = make_label_set(manifest.classes, "all")
    predictor = Predictor(Network(by_color, 1), PredictConfig(scale="1"), 80)
    assert evaluate_once() == evaluate_once() == evaluate_once()
