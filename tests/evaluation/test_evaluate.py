import contextlib
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mapseg.config import PredictConfig
from mapseg.data.batches import read_samples
from mapseg.data.manifest import read_manifest
from mapseg.evaluation.counting import ImageCounts, to_cells
from mapseg.evaluation.evaluate import evaluate, matching_evaluation
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.evaluation.stored import evaluation_path, write_evaluation
from mapseg.inference.predictor import Predictor
from mapseg.labels import VOID, make_label_set
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
    panels_dir.mkdir()
    (panels_dir / "of an earlier evaluation.jpg").touch()
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
    counts = ImageCounts("a", to_cells(np.arange(12).reshape(3, 4)))
    path, facts = evaluation_path(tmp_path, "val"), {"checkpoint": "step-2", "scale": "1"}
    write_evaluation(path, evaluation_of([counts], labels), facts)
    again = matching_evaluation(path, labels, facts)
    np.testing.assert_array_equal(again.confusion, np.arange(12).reshape(3, 4))
    for other in ({"scale": "2"}, {"records_digest": None}):
        assert matching_evaluation(path, labels, {**facts, **other}) is None
    assert matching_evaluation(evaluation_path(tmp_path, "test"), labels, facts) is None
    for damaged in ("{", "[]", '{"checkpoint": "step-2", "confusion": [[1]]}'):
        path.write_text(damaged)
        assert matching_evaluation(path, labels, {"checkpoint": "step-2"}) is None


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_the_images_get_the_evaluation_of_one(records_dir, processes):
    manifest = read_manifest(records_dir)
    labels = make_label_set(manifest.classes, "all")
    predictor = Predictor(Network(by_color, 1), PredictConfig(scale="1"), 80)
    barrier, parts = threading.Barrier(processes, timeout=60), [None] * processes

    def run(index):
        def add_up(values):
            parts[index] = np.array(values, np.float64)
            barrier.wait()
            total = sum(parts)
            barrier.wait()
            return total

        share = (index, processes)
        return evaluate(
            predictor, manifest, "training", labels, lambda _: None, share=share, add_up=add_up
        )

    alone = evaluate(predictor, manifest, "training", labels, lambda _: None)
    with ThreadPoolExecutor(processes) as pool:
        together = list(pool.map(run, range(processes)))
    for evaluation in together:
        assert [image.name for image in evaluation.images] == [image.name for image in alone.images]
        for mine, theirs in zip(evaluation.images, alone.images, strict=True):
            np.testing.assert_array_equal(mine.confusion, theirs.confusion)
        np.testing.assert_array_equal(evaluation.confusion, alone.confusion)


def test_details_are_counted_and_do_not_change_the_scores(records_dir):
    manifest = read_manifest(records_dir)
    labels = make_label_set(manifest.classes, "all")
    predictor = Predictor(Network(by_color, 1), PredictConfig(scale="1"), 80)
    plain, detailed = (
        evaluate(predictor, manifest, "validation", labels, lambda _: None, details=details)
        for details in (False, True)
    )
    np.testing.assert_array_equal(plain.confusion, detailed.confusion)
    assert detailed.has_details and not plain.has_details
    assert np.isnan(plain.mean_boundary_iou) and 0.5 < detailed.mean_boundary_iou <= 1
    assert detailed.calibration[:, 0].sum() == detailed.label_pixels.sum()
    assert detailed.calibration[:, 1].sum() == detailed.hits.sum()


def test_predictions_are_translated_to_the_classes_of_the_labels(records_dir):
    manifest = read_manifest(records_dir)
    labels = make_label_set(manifest.classes, "all")

    def rotated(images):  # class 1 in the place of 0, and so on
        return tf.roll(by_color(images), -1, axis=-1)

    right, shifted = (
        Predictor(Network(n, 1), PredictConfig(scale="1"), 80) for n in (by_color, rotated)
    )
    back = np.full(256, VOID, np.uint8)
    back[:3] = [1, 2, 0]
    expected = evaluate(right, manifest, "validation", labels, lambda _: None)
    translated = evaluate(shifted, manifest, "validation", labels, lambda _: None, translation=back)
    np.testing.assert_array_equal(translated.confusion, expected.confusion)
    back[0] = VOID  # class 1 has no counterpart
    lost = evaluate(shifted, manifest, "validation", labels, lambda _: None, translation=back)
    assert lost.confusion[:, 1].sum() == 0
    np.testing.assert_array_equal(lost.confusion[:, 3], expected.confusion[:, 1])


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
