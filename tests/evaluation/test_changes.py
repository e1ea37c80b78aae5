import numpy as np
import pytest

from mapseg.evaluation.changes import describe_changes
from mapseg.evaluation.scores import Scores
from mapseg.labels import LabelClass, make_label_set

NAMES = ("car", "road", "pole", "sky", "tree")


def scores_of(**tenths):
    """Scores with an IoU by class in tenths of a point; a class that is not named has no pixels.

    Each class has 1000 label pixels. Those that are not hits are predicted as class `rest`, which
    has no label pixels itself, so the union of every other class stays 1000.
    """
    classes = [LabelClass(i, name, (i, i, i)) for i, name in enumerate((*NAMES, "rest"))]
    confusion = np.zeros([6, 6], np.int64)
    for name, hits in tenths.items():
        confusion[NAMES.index(name), [NAMES.index(name), 5]] = hits, 1000 - hits
    scores = Scores(confusion, make_label_set(classes, "all"))
    for name, hits in tenths.items():
        assert scores.iou[NAMES.index(name)] == pytest.approx(hits / 1000)
    return scores


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            {"car": 500, "road": 900, "pole": 300},
            {"car": 531, "road": 905, "pole": 288},
            "better: car +3.1, road +0.5; worse: pole -1.2 (IoU in points)",
        ),
        ({"car": 500}, {"car": 501}, "better: car +0.1 (IoU in points)"),  # the least
        ({"car": 700}, {"car": 699}, "worse: car -0.1 (IoU in points)"),
        ({"car": 500}, {"car": 500}, ""),
        ({"car": 500, "sky": 10}, {"car": 500, "tree": 10}, ""),  # not in both
        (
            {"car": 100, "road": 100, "pole": 100, "sky": 100, "tree": 100},
            {"car": 110, "road": 140, "pole": 130, "sky": 120, "tree": 0},
            "better: road +4.0, pole +3.0, sky +2.0; worse: tree -10.0 (IoU in points)",
        ),
        (
            {"car": 100, "road": 100, "pole": 100, "sky": 100},
            {"car": 90, "road": 90, "pole": 90, "sky": 90},  # of equal changes the first classes
            "worse: car -1.0, road -1.0, pole -1.0 (IoU in points)",
        ),
    ],
)
def test_the_largest_changes_are_named(before, after, expected):
    assert describe_changes(scores_of(**before), scores_of(**after)) == expected


@pytest.mark.parametrize(
    ("hits", "expected"),
    [(9, ""), (10, "better: car +0.1 (IoU in points)")],  # 0.09 points would be shown as 0.1
)
def test_changes_below_a_tenth_of_a_point_are_ignored(hits, expected):
    before = scores_of(car=500)
    more = np.zeros([6, 7], np.int64)
    more[0, [0, 5]] = hits, -hits
    before, after = (
        Scores(10 * before.confusion + change, before.label_set) for change in (0, more)
    )
    assert describe_changes(before, after) == expected
