"""Scores of many images: against their definitions written independently, and stored."""

import csv
import json

import numpy as np
import pytest

from mapseg.evaluation import bootstrap
from mapseg.evaluation.counting import ImageCounts, count_image, to_cells
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.evaluation.stored import read_evaluation, write_evaluation
from mapseg.evaluation.summary import summary_lines
from mapseg.labels import VOID, LabelClass, LabelSet

CLASSES = 6


def label_set(evaluated):
    classes = tuple(LabelClass(i, f"c{i}", (i, 2 * i, 3 * i), e) for i, e in enumerate(evaluated))
    return LabelSet("test", classes, tuple(i if i < len(classes) else VOID for i in range(256)))


def random_pair(rng):
    """A label with void and absent classes, and a prediction that is right in most places."""
    classes = rng.permutation(CLASSES)[: rng.integers(1, CLASSES + 1)]
    label = rng.choice([*classes, VOID], (12, 17)).astype(np.uint8)
    noise = rng.choice([*range(CLASSES), VOID], label.shape).astype(np.uint8)
    return label, np.where(rng.random(label.shape) < 0.6, np.where(label == VOID, 0, label), noise)


def by_definition(pairs, evaluated):
    """Mean IoU, pixel accuracy, IoU, precision and recall by counting pixels in sets, in Python."""
    iou, precision, recall, occurring, hits, total = {}, {}, {}, 0, 0, 0
    kept = [
        (int(a), int(b))
        for label, prediction in pairs
        for a, b in zip(label.ravel(), prediction.ravel(), strict=True)
        if a != VOID and evaluated[a]
    ]
    for c in range(CLASSES):
        labelled = {i for i, (a, _) in enumerate(kept) if a == c}
        predicted = {i for i, (_, b) in enumerate(kept) if b == c}
        occurring += bool(labelled or (predicted and evaluated[c]))
        hits += len(labelled & predicted)
        total += len(labelled)
        if labelled:
            iou[c] = len(labelled & predicted) / len(labelled | predicted)
            recall[c] = len(labelled & predicted) / len(labelled)
            precision[c] = len(labelled & predicted) / len(predicted) if predicted else 0.0
    return iou, precision, recall, hits / total, sum(iou.values()) / occurring


def test_scores_equal_their_definitions_on_a_thousand_pairs():
    rng = np.random.default_rng(0)
    for _ in range(250):
        evaluated = rng.random(CLASSES) < 0.8
        evaluated[0] = True
        pairs = [random_pair(rng) for _ in range(4)]
        if not any(evaluated[label[label != VOID]].any() for label, _ in pairs):
            continue
        labels = label_set(evaluated)
        images = [count_image(str(i), *pair, labels) for i, pair in enumerate(pairs)]
        evaluation = evaluation_of(images, labels)
        iou, precision, recall, accuracy, occurring = by_definition(pairs, evaluated)
        for values, expected in (
            (evaluation.iou, iou),
            (evaluation.precision, precision),
            (evaluation.recall, recall),
        ):
            dense = [expected.get(c, np.nan) for c in range(CLASSES)]
            np.testing.assert_allclose(values, dense, rtol=0, atol=1e-12)
        assert evaluation.mean_iou == pytest.approx(np.mean([*iou.values()]), abs=1e-12)
        assert evaluation.pixel_accuracy == pytest.approx(accuracy, abs=1e-12)
        assert evaluation.occurring_mean_iou == pytest.approx(occurring, abs=1e-12)
        for i, pair in enumerate(pairs):
            if evaluated[pair[0][pair[0] != VOID]].any():
                alone = by_definition([pair], evaluated)[0]
                assert evaluation.image_mean_iou[i] == pytest.approx(
                    np.mean([*alone.values()]), abs=1e-12
                )


def synthetic_images(rng, count):
    """Images of a population: their mix of classes and their share of hits vary."""
    images = []
    for name in range(count):
        matrix = np.zeros((3, 4), np.int64)
        for c, pixels in enumerate(rng.multinomial(5000, rng.dirichlet(np.ones(3)))):
            hits = rng.binomial(pixels, rng.beta(6, 2))
            matrix[c, c] = hits
            matrix[c, :3] += rng.multinomial(pixels - hits, [1 / 3] * 3)
        images.append(ImageCounts(str(name), to_cells(matrix)))
    return images


def test_intervals_cover_the_true_score_in_95_percent_of_400_sets():
    labels, rng = label_set([True] * 3), np.random.default_rng(1)
    true = evaluation_of(synthetic_images(rng, 20_000), labels)
    covered = []
    for _ in range(400):
        ends = bootstrap.intervals(evaluation_of(synthetic_images(rng, 20), labels))
        classes = (ends.iou[:, 0] <= true.iou) & (true.iou <= ends.iou[:, 1])
        means = [
            ends.mean_iou.low <= true.mean_iou <= ends.mean_iou.high,
            ends.pixel_accuracy.low <= true.pixel_accuracy <= ends.pixel_accuracy.high,
        ]
        covered.append([*means, *classes])
    shares = np.mean(covered, axis=0)
    assert (shares >= 0.90).all() and (shares <= 0.99).all(), shares


def test_the_interval_of_boundary_iou_equals_a_bootstrap_in_python():
    labels, rng = label_set([True] * 5 + [False]), np.random.default_rng(3)
    evaluation = detailed(rng, labels, 12)
    scores = []
    for _ in range(4000):
        drawn = [evaluation.images[i] for i in rng.integers(0, 12, 12)]
        scores.append(evaluation_of(drawn, labels).mean_boundary_iou)
    ends = bootstrap.intervals(evaluation).mean_boundary_iou
    low, high = np.percentile(scores, (2.5, 97.5))
    expansion = 2.201 / 1.96 * np.sqrt(12 / 11)  # Student's t with 11 degrees of freedom
    assert ends.high - ends.low == pytest.approx(expansion * (high - low), rel=0.08)
    assert ends.low < evaluation.mean_boundary_iou < ends.high
    without = evaluation_of(synthetic_images(rng, 5), label_set([True] * 3))
    assert np.isnan(bootstrap.intervals(without).mean_boundary_iou).all()


def test_an_interval_needs_five_images():
    labels, rng = label_set([True] * 3), np.random.default_rng(0)
    four = bootstrap.intervals(evaluation_of(synthetic_images(rng, 4), labels))
    assert np.isnan(four.iou).all() and np.isnan(four.mean_iou).all()
    assert np.isnan(four.pixel_accuracy).all()
    five = bootstrap.intervals(evaluation_of(synthetic_images(rng, 5), labels))
    assert not np.isnan(five.iou).any() and not np.isnan(five.mean_iou).any()


def of_a_rare_class(rng, count):
    """Forty images, of which the first `count` have a class whose share of hits varies."""
    images = []
    for name in range(40):
        matrix = np.zeros((2, 3), np.int64)
        matrix[0, 0] = 10_000
        if name < count:
            hits = int(np.clip(rng.normal(600, 100), 0, 1000))
            matrix[1, :2] = 1000 - hits, hits
        images.append(ImageCounts(str(name), to_cells(matrix)))
    return evaluation_of(images, label_set([True] * 2))


@pytest.mark.parametrize(("count", "highest"), [(2, 0), (4, 0), (6, 0.12)])
def test_a_class_of_few_images_seldom_looks_better_by_chance(count, highest):
    """Without regard to how few they are, 2 images look different in half of the cases."""
    rng = np.random.default_rng(3)
    pairs = [(of_a_rare_class(rng, count), of_a_rare_class(rng, count)) for _ in range(100)]
    real = [bootstrap.compare(first, second).iou[1].is_real for first, second in pairs]
    assert np.mean(real) <= highest


def with_more_hits(images, share):
    """The same labels, with a share of every class's errors corrected."""
    better = []
    for image in images:
        matrix = image.matrix(3)
        for c in range(3):
            errors = matrix[c].copy()
            errors[c] = 0
            moved = (errors * share).astype(np.int64)
            matrix[c] -= moved
            matrix[c, c] += moved.sum()
        better.append(ImageCounts(image.name, to_cells(matrix)))
    return better


def test_a_paired_comparison_finds_small_differences_and_no_others():
    labels, rng = label_set([True] * 3), np.random.default_rng(2)
    images = synthetic_images(rng, 30)
    first = evaluation_of(images, labels)
    better = evaluation_of(with_more_hits(images, 0.1)[::-1], labels)  # in another order
    difference = bootstrap.compare(first, better).mean_iou
    assert difference.is_real and difference.value == pytest.approx(
        better.mean_iou - first.mean_iou
    )
    assert all(d.is_real and d.value > 0 for d in bootstrap.compare(first, better).iou)
    # Unpaired, the intervals overlap: the images differ more than the predictions.
    assert bootstrap.intervals(first).mean_iou.high > bootstrap.intervals(better).mean_iou.low
    same = bootstrap.compare(first, first).mean_iou
    assert same.value == 0 and not same.is_real


def test_other_images_labels_and_classes_are_not_compared():
    labels, rng = label_set([True] * 3), np.random.default_rng(2)
    images = synthetic_images(rng, 5)
    first = evaluation_of(images, labels)
    with pytest.raises(ValueError, match=r"same images.*only in one: 4"):
        bootstrap.compare(first, evaluation_of(images[:4], labels))
    other = synthetic_images(rng, 5)
    with pytest.raises(ValueError, match=r"same labels.*differ in 5 images, first 0"):
        bootstrap.compare(first, evaluation_of(other, labels))
    with pytest.raises(ValueError, match=r"same classes.*c1 and x"):
        classes = (labels.classes[0], LabelClass(1, "x", (0, 0, 0)), labels.classes[2])
        renamed = LabelSet("test", classes, labels.source_to_train)
        bootstrap.compare(first, evaluation_of(images, renamed))


def detailed(rng, labels, count):
    images = []
    for i in range(count):
        label, prediction = random_pair(rng)
        probability = rng.random(label.shape, np.float32)
        images.append(
            count_image(f"a/{i}", label, prediction, labels, details=True, probability=probability)
        )
    return evaluation_of(images, labels)


def test_an_evaluation_is_the_same_after_storing_it(tmp_path):
    labels = label_set([True] * 5 + [False])
    evaluation = detailed(np.random.default_rng(5), labels, 6)
    path = tmp_path / "evaluation" / "val.json"
    write_evaluation(path, evaluation, {"split": "val", "step": 7})
    again = read_evaluation(path)
    assert again.label_set == labels
    assert [image.name for image in again.images] == [f"a/{i}" for i in range(6)]
    np.testing.assert_array_equal(again.confusion, evaluation.confusion)
    np.testing.assert_array_equal(again.boundary_iou, evaluation.boundary_iou)
    np.testing.assert_array_equal(again.region_pixels, evaluation.region_pixels)
    np.testing.assert_allclose(again.calibration, evaluation.calibration)
    written = json.loads(path.read_text())
    assert (written["schema"], written["split"], written["step"]) == (2, "val", 7)
    assert written["mean_iou"] == evaluation.mean_iou
    low, high = written["mean_iou_interval"]
    assert low < evaluation.mean_iou < high
    assert written["official_mean_iou"] == evaluation.official.occurring_mean_iou
    assert written["iou"] == {name: values["iou"] for name, values in written["classes"].items()}
    assert written["iou"]["c5"] is None  # not evaluated
    assert sum(r["pixels"] for r in written["regions"]) == evaluation.label_pixels.sum()
    assert sum(b["pixels"] for b in written["calibration"]) == evaluation.label_pixels.sum()
    with (tmp_path / "evaluation" / "val_classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(labels.names)
    assert float(rows[1]["boundary_iou"]) == evaluation.boundary_iou[1]
    with (tmp_path / "evaluation" / "val_images.csv").open() as file:
        rows = list(csv.DictReader(file))
    means = [float(row["mean_iou"] or "nan") for row in rows]
    np.testing.assert_array_equal(means, evaluation.image_mean_iou)
    assert [row["iou:c1"] for row in rows] == [
        "" if np.isnan(v) else repr(float(v)) for v in evaluation.image_iou[:, 1]
    ]


def test_a_file_of_an_earlier_version_is_read_without_images(tmp_path):
    labels, path = label_set([True] * 3), tmp_path / "val.json"
    path.write_text(json.dumps({"confusion": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "mean_iou": 0.1}))
    old = read_evaluation(path, labels)
    assert old.confusion[:, :3].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert old.images == () and np.isnan(old.mean_boundary_iou)
    with pytest.raises(ValueError, match=r"classes of its ids.*Remedy: evaluate again"):
        read_evaluation(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "schema must be at most 2; got 3"),
        ({"confusion": [[0] * 7] * 6}, "must be the sum of its images"),
        ({"confusion": [[1, 2], [3, 4]]}, "must be the sum of its images"),
        ({"images": [{"name": "a"}]}, "as mapseg wrote it; got KeyError"),
        ({"images": 3}, "as mapseg wrote it; got TypeError"),
        ({"labels": {}}, "labels: must be a label set"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    path = tmp_path / "val.json"
    write_evaluation(path, detailed(np.random.default_rng(5), label_set([True] * 6), 2), {})
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"{path}.*{message}.*Remedy"):
        read_evaluation(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such evaluation"):
        read_evaluation(tmp_path / "val.json")


def test_an_evaluation_without_images_has_no_scores():
    empty = evaluation_of([], label_set([True] * 3))
    assert np.isnan(
        [empty.mean_iou, empty.mean_boundary_iou, empty.calibration_error, empty.occurring_mean_iou]
    ).all()
    assert np.isnan(bootstrap.intervals(empty).iou).all()
    assert [*summary_lines(empty)] == ["mean IoU nan% over 0 classes present, pixel accuracy nan%"]
