"""The scores equal those of the official evaluators of Vistas and Cityscapes, and of 2018."""

import json

import numpy as np
import pytest
from conftest import ROOT, SHARED
from PIL import Image

from mapseg.evaluation.score import main
from mapseg.evaluation.stored import read_evaluation

DATA = SHARED / "data"


def score(root, classes_path, *options, predictions=None, labels=None):
    """Runs the command on the folders `predictions` and `labels`."""
    arguments = [
        f"--predictions={predictions or root / 'predictions'}",
        f"--labels={labels or root / 'labels'}",
        f"--classes={classes_path}",
        f"--out_path={root / 'out.json'}",
        *options,
    ]
    assert main(["score", *arguments]) == 0
    return read_evaluation(root / "out.json")


def save_pairs(root, pairs, names=("{}.png", "{}.png")):
    for folder, name, at in (("labels", names[0], 0), ("predictions", names[1], 1)):
        (root / folder).mkdir(parents=True)
        for i, pair in enumerate(pairs):
            Image.fromarray(pair[at]).save(root / folder / name.format(i))


def random_pairs(rng, label_ids, predicted_ids, count=3):
    """Id maps in blocks, with predictions that are right in most places."""
    pairs = []
    for _ in range(count):
        label, other = (
            rng.choice(ids, (6, 8)).astype(np.uint8).repeat(3, axis=0).repeat(4, axis=1)
            for ids in (label_ids, predicted_ids)
        )
        right = (rng.random(label.shape) < 0.6) & np.isin(label, predicted_ids)
        pairs.append((label, np.where(right, label, other)))
    return pairs


# --- Mapillary Vistas


def vistas_evaluator(pairs, evaluated):
    """IoU by class as in the published evaluator: [evaluated classes], nan if none occurs.

    It counts (label, prediction) over all labels, deletes the rows and columns of those with
    `evaluate: false`, and averages the classes that are not nan.
    """
    size = len(evaluated)
    matrix = np.zeros((size, size), np.int64)
    for label, prediction in pairs:
        for row, column in zip(label.ravel(), prediction.ravel(), strict=True):
            matrix[row, column] += 1
    left_out = [i for i in range(size) if not evaluated[i]]
    matrix = np.delete(np.delete(matrix, left_out, axis=0), left_out, axis=1)
    iou = []
    for i in range(len(matrix)):
        true_positive = matrix[i, i]
        false_negative = matrix[i].sum() - true_positive
        false_positive = matrix[:, i].sum() - true_positive
        total = true_positive + false_positive + false_negative
        iou.append(true_positive / total if total else np.nan)
    return np.array(iou)


@pytest.mark.parametrize("seed", range(12))
def test_official_scores_are_those_of_the_vistas_evaluator(tmp_path, seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(4, 12))
    evaluated = rng.random(size) < 0.7
    evaluated[:2] = True
    # Some classes are in no label, some in no prediction; unevaluated ones are in both.
    label_ids, predicted_ids = (rng.permutation(size)[: rng.integers(2, size)] for _ in range(2))
    label_ids = np.append(label_ids, 0)
    labels = [
        {"name": f"c{i}", "color": [i, i, i], "evaluate": bool(evaluated[i])} for i in range(size)
    ]
    (tmp_path / "classes.json").write_text(json.dumps({"labels": labels}))
    pairs = random_pairs(rng, label_ids, predicted_ids)
    save_pairs(tmp_path, pairs)
    official = score(tmp_path, tmp_path / "classes.json").official
    iou = vistas_evaluator(pairs, evaluated)
    # A class that is predicted but not labelled is 0 there; here its IoU is nan, in the mean 0.
    labelled = np.array([any((a == i).any() for a, _ in pairs) for i in np.flatnonzero(evaluated)])
    expected = np.where(labelled, iou, np.nan)
    np.testing.assert_allclose(official.iou, expected, rtol=0, atol=1e-12)
    assert (iou[~labelled & ~np.isnan(iou)] == 0).all()
    assert official.occurring_mean_iou == pytest.approx(np.nanmean(iou), abs=1e-12)


# --- Cityscapes


@pytest.fixture(scope="module")
def cityscapes():
    return pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="cityscapesscripts is not installed",
    )


def cityscapes_scores(module, root, count):
    """IoU by class name, and their mean, as the evaluator of Cityscapes reports them."""
    arguments = module.args
    arguments.evalInstLevelScore = arguments.JSONOutput = False
    arguments.quiet = True
    result = module.evaluateImgLists(
        [str(root / f"predictions/city_{i}_pred.png") for i in range(count)],
        [str(root / f"labels/city_{i}_gtFine_labelIds.png") for i in range(count)],
        arguments,
    )
    return result["classScores"], result["averageScoreClasses"]


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_cityscapes_evaluator(cityscapes, tmp_path, seed):
    rng = np.random.default_rng(seed)
    # All 34 ids occur, those that are not evaluated too; two classes are in no label.
    pairs = random_pairs(rng, [i for i in range(34) if i not in (31, 27)], range(34), count=5)
    save_pairs(tmp_path, pairs, ("city_{}_gtFine_labelIds.png", "city_{}_pred.png"))
    evaluation = score(
        tmp_path,
        ROOT / "data_prep/cityscapes_34.json",
        "--prediction_suffix=_pred.png",
        "--label_suffix=_gtFine_labelIds.png",
    )
    by_name, mean = cityscapes_scores(cityscapes, tmp_path, 5)
    scored = {name: iou for name, iou in by_name.items() if not np.isnan(iou)}
    assert len(scored) == evaluation.present.sum() + 2 == 19  # predicted, but in no label: 0
    for name, iou in zip(evaluation.label_set.names, evaluation.iou, strict=True):
        if np.isnan(iou):
            assert scored[name] == 0
        else:
            assert iou == pytest.approx(scored[name], abs=1e-12)
    assert evaluation.occurring_mean_iou == pytest.approx(mean, abs=1e-12)


# --- the predictions of 2018


def vistas_score(tmp_path, name, *options):
    sample = DATA / "mapillary_sample"
    return score(
        tmp_path,
        sample / "config_v1.2.json",
        *options,
        predictions=DATA / "seed_predictions" / name,
        labels=sample / "validation" / "labels",
    )


@pytest.mark.skipif(not DATA.is_dir(), reason="the 2018 predictions are not there")
@pytest.mark.parametrize("label_set", ["all", "all_66"])
@pytest.mark.parametrize(
    ("name", "honest", "official"),
    [
        ("raw_66", (20.93, 76.92, 25.74), (21.15, 77.68, 25.75)),
        ("downsized_66", (27.37, 81.97, 55.45), (27.91, 82.37, 55.46)),
    ],
)
def test_scores_of_the_2018_predictions(tmp_path, name, honest, official, label_set):
    evaluation = vistas_score(tmp_path, name, f"--label_set={label_set}")
    assert evaluation.present.sum() == 37
    lane = evaluation.label_set.names.index("marking--general")
    for scores, want in ((evaluation, honest), (evaluation.official, official)):
        figures = (scores.mean_iou, scores.pixel_accuracy, scores.iou[lane])
        np.testing.assert_allclose(100 * np.array(figures), want, atol=0.005)


@pytest.mark.skipif(not DATA.is_dir(), reason="the 2018 predictions are not there")
@pytest.mark.parametrize(("name", "lane_iou"), [("raw_lane", 0.48), ("downsized_lane", 57.94)])
def test_lane_scores_of_the_2018_predictions(tmp_path, name, lane_iou):
    evaluation = vistas_score(tmp_path, name, "--label_set=lane_marking", "--prediction_ids=train")
    assert 100 * evaluation.iou[1] == pytest.approx(lane_iou, abs=0.005)
