"""Boundaries and regions against values worked by hand; the counts of an image."""

import cv2
import numpy as np
import pytest

from mapseg.evaluation.boundaries import boundary_counts
from mapseg.evaluation.counting import CALIBRATION_BINS, count_image
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.evaluation.regions import AREA_EDGES_PX, region_counts
from mapseg.labels import VOID, LabelClass, make_label_set


def label_set(evaluated):
    table = [LabelClass(i, f"c{i}", (i, i, i), e) for i, e in enumerate(evaluated)]
    return make_label_set(table, "all_66" if len(table) == 66 else "all")


def test_boundary_iou_of_a_square_moved_by_one_pixel():
    # Diagonal 42.4 px, so the boundary is 1 px wide: a ring of 36 of a square's 100 pixels.
    label, prediction = np.zeros((2, 30, 30), np.uint8)
    label[10:20, 10:20] = 1
    prediction[10:20, 11:21] = 1
    # The rings share the top and bottom rows where the squares overlap, 9 pixels each.
    assert boundary_counts(label, prediction, [1]) == {1: (18, 36 + 36 - 18)}
    assert boundary_counts(label, label, [1]) == {1: (36, 36)}
    # Of the rest: the ring around the hole, corners included, and along the image's border.
    assert boundary_counts(label, label, [0]) == {0: (44 + 116, 44 + 116)}


def test_the_boundary_is_wider_in_larger_images():
    label = np.zeros((300, 400), np.uint8)  # diagonal 500 px: 10 px wide
    label[100:200, 100:200] = 1
    assert boundary_counts(label, label, [1]) == {1: (100**2 - 80**2, 100**2 - 80**2)}


def test_boundaries_equal_repeated_erosion():
    """The definition of the paper: a mask without its erosion by 3x3 squares, border included."""
    rng = np.random.default_rng(3)
    noise = cv2.GaussianBlur(rng.random((2, 90, 140)).transpose(1, 2, 0), (0, 0), 4)
    label, prediction = (
        np.digitize(noise[..., i], [0.48, 0.5, 0.52]).astype(np.uint8) for i in (0, 1)
    )
    steps = round(0.02 * np.hypot(90, 140))

    def ring(mask):
        padded = np.pad(mask.astype(np.uint8), 1)
        inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)
        return (padded - inner)[1:-1, 1:-1] > 0

    for class_id, counts in boundary_counts(label, prediction, range(4)).items():
        rings = ring(label == class_id), ring(prediction == class_id)
        assert counts == ((rings[0] & rings[1]).sum(), (rings[0] | rings[1]).sum())
        assert 0 < counts[0] < counts[1]


def test_regions_by_area():
    label = np.zeros((60, 60), np.uint8)
    label[0:5, 0:5] = 1  # 25 px
    label[5, 5] = 1  # touches it diagonally: 26 px
    label[20:50, 20:50] = 1  # 900 px
    prediction = np.zeros_like(label)
    prediction[0:2, 0:5] = prediction[5, 5] = 1  # 11 of 26
    prediction[20:30, 20:50] = 1  # 300 of 900
    counts = region_counts(label, prediction, [0, 1])
    assert counts[1].tolist() == [[26, 11], [900, 300], [0, 0], [0, 0], [0, 0]]
    assert counts[0].tolist() == [[0, 0], [0, 0], [3600 - 926, 3600 - 926], [0, 0], [0, 0]]


def test_void_and_unevaluated_labels_are_in_no_detail():
    label = np.full((20, 20), VOID, np.uint8)
    label[:, :10] = 0
    prediction = np.zeros((20, 20), np.uint8)  # class 0 everywhere
    classes = [LabelClass(0, "a", (0, 0, 0)), LabelClass(1, "b", (1, 1, 1))]
    counts = count_image(
        "x",
        label,
        prediction,
        make_label_set(classes, "all"),
        details=True,
        probability=np.full((20, 20), 0.9, np.float32),
    )
    assert counts.confusion.tolist() == [[0, 0, 200]]
    # The unlabelled half is in neither mask, so the prediction's contour is that of the label.
    assert counts.boundary.tolist() == [[0, 2 * (20 + 8), 2 * (20 + 8)]]
    assert counts.regions.tolist() == [[0, 1, 200, 200]]
    assert counts.calibration[:, 0].sum() == 200


def test_the_calibration_error_by_hand():
    classes = [LabelClass(0, "a", (0, 0, 0)), LabelClass(1, "b", (1, 1, 1))]
    label = np.array([[0] * 10 + [VOID]], np.uint8)
    prediction = np.array([[0] * 6 + [1] * 4 + [0]], np.uint8)
    probability = np.array([[0.95] * 5 + [0.55] * 5 + [1.0]], np.float32)
    counts = count_image(
        "x",
        label,
        prediction,
        make_label_set(classes, "all"),
        details=True,
        probability=probability,
    )
    evaluation = evaluation_of([counts], make_label_set(classes, "all"))
    # 5 of 5 correct at 0.95, 1 of 5 at 0.55
    assert evaluation.calibration_error == pytest.approx((5 * 0.05 + 5 * 0.35) / 10, abs=1e-6)
    assert len(evaluation.calibration) == CALIBRATION_BINS


def test_a_probability_of_one_is_in_the_last_bin():
    classes = [LabelClass(0, "a", (0, 0, 0)), LabelClass(1, "b", (1, 1, 1))]
    ids, one = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.float32)
    labels = make_label_set(classes, "all")
    counts = count_image("x", ids, ids, labels, details=True, probability=one)
    assert counts.calibration[-1].tolist() == [16, 16, 16]


def test_regions_equal_opencvs_components_of_each_class():
    rng = np.random.default_rng(5)
    for block in (1, 2, 5, 9):
        coarse = rng.integers(0, 5, (90 // block, 140 // block), np.uint8)
        label = coarse.repeat(block, axis=0).repeat(block, axis=1)
        label[rng.random(label.shape) < 0.05] = VOID
        prediction = np.where(rng.random(label.shape) < 0.7, label, 0).astype(np.uint8)
        for class_id, counts in region_counts(label, prediction, range(5)).items():
            _, regions, facts, _ = cv2.connectedComponentsWithStats(
                (label == class_id).astype(np.uint8), connectivity=8
            )
            expected = np.zeros_like(counts)
            for region, area in enumerate(facts[1:, cv2.CC_STAT_AREA], start=1):
                hits = (prediction[regions == region] == class_id).sum()
                expected[np.digitize(area, AREA_EDGES_PX)] += (area, hits)
            np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_images_of_one_row_or_column(size):
    label = np.zeros(size, np.uint8)
    label[-1, -1] = 1
    others = label.size - 1
    assert region_counts(label, label, [0, 1])[0][0].tolist() == [others, others]
    assert boundary_counts(label, label, [0, 1]) == {0: (others, others), 1: (1, 1)}
