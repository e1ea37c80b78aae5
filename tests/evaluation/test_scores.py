import numpy as np
import pytest

from mapseg.evaluation.scores import Scores, confusion_matrix
from mapseg.labels import VOID, LabelClass, make_label_set


def label_set(evaluated=(True, True, True)):
    classes = [LabelClass(i, f"c{i}", (i, i, i), e) for i, e in enumerate(evaluated)]
    return make_label_set(classes, "all")


def table_with_unlabeled():
    """65 evaluated classes and an unevaluated last one, as Vistas v1.2 has."""
    return [LabelClass(i, f"c{i}", (i, i, i), i < 65) for i in range(66)]


def test_confusion_matrix_counts_by_label_and_prediction():
    label = np.array([[0, 0, 1], [2, VOID, 1]], np.uint8)
    prediction = np.array([[0, 1, 1], [0, 2, 1]], np.uint8)
    expected = [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0]]
    assert confusion_matrix(label, prediction, 3).tolist() == expected


def test_a_prediction_of_no_class_is_missed_but_no_false_positive():
    label = np.array([[0, 0, 1, VOID]], np.uint8)
    prediction = np.array([[0, VOID, VOID, VOID]], np.uint8)
    scores = Scores(confusion_matrix(label, prediction, 2), label_set((True, True)))
    assert scores.confusion.tolist() == [[1, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(scores.iou, [1 / 2, 0])
    assert scores.pixel_accuracy == pytest.approx(1 / 3)
    np.testing.assert_allclose(scores.precision, [1, 0])
    np.testing.assert_allclose(scores.official.iou, [1, np.nan])  # as if it were not labelled


def test_scores_by_hand():
    # class 0: 3 of 4 labelled pixels found, 1 false positive: 3 / 5; class 1: 5 / 7; class 2 absent
    confusion = np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]])
    scores = Scores(confusion, label_set())
    np.testing.assert_allclose(scores.iou, [3 / 5, 5 / 7, np.nan])
    assert scores.mean_iou == pytest.approx((3 / 5 + 5 / 7) / 2)
    assert scores.pixel_accuracy == pytest.approx(8 / 10)
    assert scores.majority_mean_iou == pytest.approx(6 / 10 / 2)
    np.testing.assert_allclose(scores.recall, [3 / 4, 5 / 6, np.nan])
    np.testing.assert_allclose(scores.precision, [3 / 4, 5 / 6, np.nan])
    assert scores.mean_class_accuracy == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert scores.frequency_weighted_iou == pytest.approx(0.4 * 3 / 5 + 0.6 * 5 / 7)


def test_a_false_positive_of_an_absent_class_lowers_the_true_class():
    scores = Scores(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]), label_set())
    np.testing.assert_allclose(scores.iou, [3 / 4, 1, np.nan])
    assert scores.mean_iou == pytest.approx((3 / 4 + 1) / 2)
    assert scores.occurring_mean_iou == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert any("without labels as 0: mean IoU 58.33%" in line for line in scores.total_lines())


def test_unevaluated_labels_do_not_count_and_their_predictions_are_wrong_or_dropped():
    confusion = np.zeros((66, 66), np.int64)
    confusion[0, 0], confusion[0, 65], confusion[65, 0], confusion[1, 1] = 6, 2, 50, 4
    scores = Scores(confusion, make_label_set(table_with_unlabeled(), "all_66"))
    assert scores.iou[0] == pytest.approx(6 / 8)
    assert scores.official.iou[0] == pytest.approx(1)
    assert scores.pixel_accuracy == pytest.approx(10 / 12)
    assert scores.official.pixel_accuracy == pytest.approx(1)
    assert not scores.present[65]


def test_official_scores_are_those_of_the_vistas_evaluator():
    """It adds up a confusion matrix of all labels, and deletes the unevaluated rows and columns."""
    labels, unlabeled = make_label_set(table_with_unlabeled(), "all_66"), 65
    pairs = [
        ([[0, 0, 0, 0], [1, 1, 65, 65]], [[0, 0, 1, 65], [1, 0, 0, 1]]),
        ([[0, 0, 2, 2], [2, 2, 1, 65]], [[0, 0, 2, 0], [2, 65, 1, 65]]),
    ]
    total = sum(
        confusion_matrix(labels.table[np.array(label, np.uint8)], np.array(guess, np.uint8), 66)
        for label, guess in pairs
    )
    scores = Scores(total, labels)
    # (right, missed, false alarms): 0: (4, 1, 2), 1: (2, 1, 1), 2: (2, 1, 0)
    official = scores.official
    np.testing.assert_allclose(official.iou[:3], [4 / 7, 2 / 4, 2 / 3])
    assert official.mean_iou == pytest.approx((4 / 7 + 2 / 4 + 2 / 3) / 3)
    assert official.pixel_accuracy == pytest.approx(8 / 11)
    # Here a labelled pixel that is taken for an unlabeled one is missed: one of 0 and one of 2.
    np.testing.assert_allclose(scores.iou[:3], [4 / 8, 2 / 4, 2 / 4])
    assert scores.mean_iou == pytest.approx(1 / 2)
    assert scores.pixel_accuracy == pytest.approx(8 / 13)
    assert scores.present.sum() == official.present.sum() == 3
    assert not official.confusion[:, unlabeled].any()
    assert official.occurring_mean_iou == official.mean_iou  # every predicted class is labelled


def test_confusion_matrices_sum_over_images():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 3, (2, 8, 5), np.uint8)
    halves = sum(confusion_matrix(label[i : i + 4], prediction[i : i + 4], 3) for i in (0, 4))
    np.testing.assert_array_equal(confusion_matrix(label, prediction, 3), halves)


@pytest.mark.parametrize(
    ("label", "prediction"), [([3], [0]), ([0], [3]), ([0], [254]), ([0], [0, 0])]
)
def test_ids_out_of_range_and_shapes_are_refused(label, prediction):
    with pytest.raises(ValueError, match="must"):
        confusion_matrix(np.array(label, np.uint8), np.array(prediction, np.uint8), 3)


def test_without_labels_scores_are_nan():
    scores = Scores(np.zeros((3, 3), np.int64), label_set())
    assert np.isnan([scores.mean_iou, scores.pixel_accuracy, scores.majority_mean_iou]).all()
    assert len(list(scores.total_lines())) == 1
    assert not list(scores.class_lines())
