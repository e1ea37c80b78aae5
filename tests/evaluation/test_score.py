"""The command that scores predictions, end to end: folders in, scores and files out."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import LABELS, tiny_scene
from PIL import Image

from mapseg.data.resizing import resize_label
from mapseg.evaluation.counting import count_image
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.evaluation.score import main
from mapseg.evaluation.stored import read_evaluation
from mapseg.labels import VOID, make_label_set, parse_class_table
from mapseg.mapping import read_mapping

CLASSES = parse_class_table({"labels": LABELS}, "test")  # road, marking, sky; 3 is not evaluated
KEYS = ("a", "town/b", "town/c")
MAPPING = {
    "void_id": 9,
    "targets": [
        {k: v for k, v in LABELS[i].items() if k != "evaluate"} | {"id": i} for i in (2, 0)
    ],
    "lines": [
        {"source": "tarmac", "target": "flat--road", "reason": "the same"},
        {"source": "paint", "target": None, "reason": "not labelled"},
        {"source": "sky", "target": "nature--sky", "reason": "the same"},
    ],
}
OTHER = {
    "labels": [
        {"name": name, "color": [9, 9, i], "id": 10 * i}
        for i, name in enumerate(("sky", "paint", "tarmac"))
    ]
}


def save(path, ids, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


@pytest.fixture
def root(tmp_path):
    """Three labels and predictions, 30 % of which are wrong, as source ids."""
    rng = np.random.default_rng(4)
    for i, key in enumerate(KEYS):
        label = tiny_scene(rng, 40 + i, 50)[1]
        wrong = rng.integers(0, 4, label.shape, np.uint8)
        save(tmp_path / f"labels/{key}.png", label)
        save(
            tmp_path / f"predictions/{key}.png",
            np.where(rng.random(label.shape) < 0.7, label, wrong).astype(np.uint8),
        )
    (tmp_path / "classes.json").write_text(json.dumps({"labels": LABELS}))
    return tmp_path


def score(root, *options, predictions="predictions", labels="labels"):
    return main(
        [
            "score",
            f"--predictions={root / predictions}",
            f"--labels={root / labels}",
            f"--classes={root / 'classes.json'}",
            *options,
        ]
    )


def scored(root, *options, **folders):
    assert score(root, f"--out_path={root / 'out.json'}", *options, **folders) == 0
    return read_evaluation(root / "out.json")


def ids_of(root, folder, key):
    return np.asarray(Image.open(root / folder / f"{key}.png"))


def expected(root, table, prediction=lambda key, ids: ids):
    """Scores the folders; `table` gives the train id of each predicted id."""
    labels = make_label_set(CLASSES, "all")
    table = np.array([*table, *[VOID] * (256 - len(table))], np.uint8)
    images = []
    for key in KEYS:
        ids = prediction(key, ids_of(root, "predictions", key))
        label = labels.table[ids_of(root, "labels", key)]
        images.append(count_image(key, label, table[ids], labels, details=True))
    return evaluation_of(images, labels)


def assert_equal(evaluation, other):
    np.testing.assert_array_equal(evaluation.confusion, other.confusion)
    np.testing.assert_array_equal(evaluation.boundary_iou, other.boundary_iou)
    assert [image.name for image in evaluation.images] == [image.name for image in other.images]
    assert evaluation.label_set.names == other.label_set.names


def test_source_ids_are_scored_and_written(root, capsys):
    evaluation = scored(root)
    truth = expected(root, [0, 1, 2, VOID])  # the unevaluated class is no class: wrong
    assert_equal(evaluation, truth)
    assert truth.official.mean_iou > truth.mean_iou
    text = capsys.readouterr().out
    for line in (f"mean IoU {truth.mean_iou:.2%} over 3 classes", "official semantics: mean IoU"):
        assert line in text
    assert f"boundary IoU {truth.mean_boundary_iou:.2%}, frequency-weighted IoU" in text
    # Three images are too few.
    assert json.loads((root / "out.json").read_text())["mean_iou_interval"] == [None, None]
    assert "interval" not in text


def test_the_interval_is_printed_as_it_is_stored(two, capsys):
    capsys.readouterr()
    evaluation = scored(two, predictions="worse", labels="many")
    low, high = json.loads((two / "out.json").read_text())["mean_iou_interval"]
    line = f"95 % interval of mean IoU, over images: {low:.2%} to {high:.2%}"
    assert line in capsys.readouterr().out
    assert low < evaluation.mean_iou < high


def test_the_file_has_facts_and_tables_but_no_paths(root):
    scored(root)
    text = (root / "out.json").read_text()
    facts = json.loads(text)
    assert (facts["predictions_dir"], facts["labels_dir"]) == ("predictions", "labels")
    assert (facts["class_table"], facts["prediction_ids"]) == ("classes.json", "source")
    assert (facts["samples"], facts["resized"], facts["schema"]) == (3, 0, 2)
    assert str(root) not in text
    rows = list(csv.DictReader((root / "out_images.csv").open()))
    assert [row["image"] for row in rows] == [*KEYS]
    assert (root / "out_classes.csv").is_file()


def test_train_ids_are_scored_and_255_is_no_class(root):
    ids = np.full(ids_of(root, "labels", "a").shape, VOID, np.uint8)
    save(root / "predictions/a.png", ids)
    for key in KEYS[1:]:
        save(root / f"predictions/{key}.png", np.minimum(ids_of(root, "predictions", key), 2))
    evaluation = scored(root, "--prediction_ids=train")
    assert_equal(evaluation, expected(root, [0, 1, 2]))
    assert evaluation.confusion[:, -1].sum() == evaluation.image_counts[0, :, 0].sum()


def test_a_label_set_regroups_labels_and_predictions(root):
    evaluation = scored(root, "--label_set=lane_marking")
    pixels = [(ids_of(root, "labels", k), ids_of(root, "predictions", k)) for k in KEYS]
    hits = sum(((a == 1) & (b == 1)).sum() for a, b in pixels)
    union = sum((((a == 1) | (b == 1)) & (a != 3)).sum() for a, b in pixels)
    assert evaluation.iou[1] == hits / union


def test_predictions_without_a_label_are_counted(root, capsys):
    for name in ("x", "town/y"):
        save(root / f"predictions/{name}.png", np.zeros((4, 4), np.uint8))
    assert_equal(scored(root), expected(root, [0, 1, 2, VOID]))
    assert "2 predictions without a label are ignored" in capsys.readouterr().out


def test_suffixes_pair_files_of_one_folder(root):
    for key in KEYS:
        for kind in ("labels", "predictions"):
            (root / f"both/{key}_{kind}.png").parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / kind / f"{key}.png", root / f"both/{key}_{kind}.png")
    options = ("--prediction_suffix=_predictions.png", "--label_suffix=_labels.png")
    evaluation = scored(root, *options, predictions="both", labels="both")
    assert_equal(evaluation, expected(root, [0, 1, 2, VOID]))


def test_resize_takes_the_nearest_pixel(root, capsys):
    small = resize_label(ids_of(root, "predictions", "town/b"), (20, 31))
    save(root / "predictions/town/b.png", small)
    assert score(root) == 1
    assert "b.png: a prediction must have its label's size; got 20x31, label 41x50 in" in (
        capsys.readouterr().err
    )
    evaluation = scored(root, "--resize")
    assert "1 of 3 predictions were resized" in capsys.readouterr().out
    size = {key: ids_of(root, "labels", key).shape for key in KEYS}
    assert_equal(
        evaluation,
        expected(root, [0, 1, 2, VOID], lambda key, ids: resize_label(ids, size[key])),
    )


@pytest.fixture
def mapped(root):
    """Predictions of another dataset: 0 sky, 10 paint, 20 tarmac; and of its train ids 0, 1, 2."""
    (root / "mapping.json").write_text(json.dumps(MAPPING))
    (root / "other.json").write_text(json.dumps(OTHER))
    labels = make_label_set(parse_class_table(OTHER, "test"), "all")
    (root / "labels.json").write_text(json.dumps(labels.to_json()))
    to_other = np.array([2, 1, 0, 1], np.uint8)
    for key in KEYS:
        ids = to_other[ids_of(root, "predictions", key)]
        save(root / f"train/{key}.png", ids)
        save(root / f"predictions/{key}.png", ids * np.uint8(10))
    return root


def test_a_mapping_translates_predictions_by_name(mapped):
    # Paint has no target: no class, which is wrong where markings are labelled.
    truth = expected(mapped, [{0: 2, 20: 0}.get(i, VOID) for i in range(21)])
    assert truth.iou[1] == 0 < truth.iou[0]
    mapping = f"--mapping={mapped / 'mapping.json'}"
    table = f"--prediction_classes={mapped / 'other.json'}"
    assert_equal(scored(mapped, mapping, table), truth)
    stored = f"--prediction_classes={mapped / 'labels.json'}"
    assert_equal(scored(mapped, mapping, stored, predictions="train"), truth)
    digest = read_mapping(str(mapped / "mapping.json")).digest
    assert json.loads((mapped / "out.json").read_text())["mapping"] == digest


def test_a_target_that_is_not_labelled_is_refused(mapped, capsys):
    table = {"labels": [c for c in LABELS if c["name"] != "nature--sky"]}
    (mapped / "classes.json").write_text(json.dumps(table))
    options = (f"--mapping={mapped / 'mapping.json'}", f"--prediction_classes={mapped}/other.json")
    assert score(mapped, *options) == 1
    assert "the labels have no nature--sky. Remedy:" in capsys.readouterr().err


def damage(path):
    path.write_bytes(path.read_bytes()[:-30])


def replace_by(array):
    return lambda path: save(path, array)


ZEROS = np.zeros((40, 50), np.uint8)
FAULTS = {
    "missing": ("predictions/town/b.png", lambda p: p.unlink(), "b.png: must have the prediction"),
    "empty file": ("predictions/a.png", lambda p: p.write_bytes(b""), "a.png: .* an empty file"),
    "not a PNG": ("predictions/a.png", lambda p: p.write_text("x"), "a prediction must be a PNG"),
    "damaged": ("predictions/a.png", damage, "a.png: must be a valid .* Remedy: write the pred"),
    "damaged label": ("labels/a.png", damage, "a.png: must be a valid .* Remedy: fetch the file"),
    "RGB": (
        "predictions/a.png",
        replace_by(np.zeros((40, 50, 3), np.uint8)),
        "a.png: a prediction must be a palette PNG or .* got 8-bit RGB",
    ),
    "16 bits": (
        "predictions/a.png",
        replace_by(np.zeros((40, 50), np.uint16)),
        "a.png: a prediction must be a palette PNG or .* got 16-bit grey",
    ),
    "RGB label": (
        "labels/a.png",
        replace_by(np.zeros((40, 50, 3), np.uint8)),
        "a.png: a label must be a palette PNG or .* got 8-bit RGB",
    ),
    "unknown id": (
        "predictions/a.png",
        replace_by(ZEROS + np.uint8(7)),
        r"a.png: ids must be in the class table \(0-3\); got 7. Remedy: choose the class table of "
        "these predictions",
    ),
    "unknown id in a label": ("labels/a.png", replace_by(ZEROS + np.uint8(7)), "got 7. Remedy"),
    "two of one name": (
        "predictions/a.png",
        lambda p: shutil.copy(p, p.with_suffix(".PNG")),
        "must be the only file of its stem",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files_are_named(root, capsys, fault):
    name, make, message = FAULTS[fault]
    make(root / name)
    assert score(root, f"--out_path={root / 'new/out.json'}") == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert "Remedy: " in error
    assert not (root / "new").exists()


def test_every_label_must_have_a_prediction(root, capsys):
    shutil.rmtree(root / "predictions/town")
    assert score(root) == 1
    error = capsys.readouterr().err
    assert "(2 of 3 have no pair: town/b, town/c). Remedy: predict all images" in error


def test_labels_without_a_scored_pixel_are_refused(root, capsys):
    for key in KEYS:
        save(root / f"labels/{key}.png", np.full_like(ids_of(root, "labels", key), 3))
    assert score(root, f"--out_path={root / 'out.json'}") == 1
    assert "labels must have pixels of the classes that are scored (all)" in capsys.readouterr().err
    assert not (root / "out.json").exists()


@pytest.mark.parametrize("ids", [3, 254])
def test_train_ids_must_be_those_of_the_label_set(root, capsys, ids):
    for key in KEYS:
        save(root / f"predictions/{key}.png", np.full_like(ids_of(root, "labels", key), ids))
    assert score(root, "--prediction_ids=train") == 1
    message = f"a.png: ids must be train ids (0-2, or 255 for no class); got {ids}. Remedy:"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"predictions": "none"}, "none: no such folder"),
        ({"labels": "none"}, "none: no such folder"),
        ({"predictions": "empty"}, "empty: must contain predictions (.png); got an empty folder"),
        ({"labels": "empty"}, "empty: must contain labels (.png); got an empty folder"),
        (
            {"predictions": "labels"},
            "predictions and labels must differ in folder or suffix; got one folder. Remedy: give "
            "--prediction_suffix and --label_suffix",
        ),
    ],
)
def test_faults_of_folders_are_named(root, capsys, folders, message):
    (root / "empty").mkdir()
    assert score(root, **folders) == 1
    assert message in capsys.readouterr().err


def test_train_ids_read_as_source_ids_are_noticed_by_no_class(root, capsys):
    ids = np.minimum(ids_of(root, "predictions", "a"), 2)
    ids[0, 0] = VOID
    save(root / "predictions/a.png", ids)
    assert score(root) == 1
    assert "got 255, which is no class in train ids. Remedy: if" in capsys.readouterr().err
    for key in KEYS[1:]:
        rest = np.minimum(ids_of(root, "predictions", key), 2)
        save(root / f"predictions/{key}.png", rest)
    assert score(root, "--prediction_ids=train") == 0


def test_train_ids_read_as_source_ids_are_noticed_by_their_palette(root, capsys):
    """Where the table begins with an unevaluated class, the two differ by one."""
    table = [{**c, "id": (c["id"] + 1) % 4} for c in (dict(c, id=i) for i, c in enumerate(LABELS))]
    (root / "classes.json").write_text(json.dumps({"labels": table}))
    palette = [value for c in LABELS for value in c["color"]]
    for key in KEYS:
        ids = np.minimum(ids_of(root, "predictions", key), 2)
        save(root / f"predictions/{key}.png", ids, palette)
    assert score(root) == 0
    text = capsys.readouterr().out
    assert "WARNING: " in text and "indices have the colour of another class" in text
    assert "(3 such files)" in text and "--prediction_ids" in text
    assert score(root, "--prediction_ids=train") == 0
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compare=a,b",), "compare must be given alone; got also --predictions"),
        (("--split=training",), "split must be given only with --compare"),
        (("--prediction_classes=x.json",), "must be given together with --mapping"),
        (("--mapping=m", "--prediction_ids=train"), "prediction_ids must not be given together"),
        (("--out_path=scores.csv",), "out_path must be a .json file; got scores.csv"),
        (("--prediction_suffix=_x.jpg",), "prediction_suffix must be the end of file names"),
    ],
)
def test_flags_that_do_not_fit_are_refused(root, capsys, options, message):
    assert score(root, *options) == 1
    assert message in capsys.readouterr().err


# --- two evaluations


def compare(*paths):
    return main(["score", f"--compare={','.join(map(str, paths))}"])


@pytest.fixture
def two(root):
    """Twelve images; `worse.json` and, in a run folder, better predictions of all but the sky."""
    rng = np.random.default_rng(9)
    for i in range(12):
        label = tiny_scene(rng, 40, 50)[1]
        wrong = np.where(rng.random(label.shape) < 0.4, rng.integers(0, 3, label.shape), label)
        better = np.where((label != 2) & (rng.random(label.shape) < 0.5), label, wrong)
        for kind, ids in (("many", label), ("worse", wrong), ("better", better)):
            save(root / f"{kind}/{i}.png", ids.astype(np.uint8))
    run_path = root / "run/evaluation/validation.json"
    for kind, path in (("worse", root / "worse.json"), ("better", run_path)):
        assert score(root, f"--out_path={path}", predictions=kind, labels="many") == 0
    return root


def test_a_real_difference_is_reported_with_its_classes(two, capsys):
    worse, better = (
        read_evaluation(two / name) for name in ("worse.json", "run/evaluation/validation.json")
    )
    capsys.readouterr()
    assert compare(two / "worse.json", two / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"worse.json: mean IoU {worse.mean_iou:.2%}")
    assert lines[1].endswith(f"run: mean IoU {better.mean_iou:.2%}")
    gain = 100 * (better.mean_iou - worse.mean_iou)
    assert lines[2].startswith(f"difference of mean IoU: {gain:+.2f} points, 95 % interval +")
    assert lines[2].endswith("real, as the interval excludes zero")
    gains = 100 * (better.iou - worse.iou)
    order = sorted(range(3), key=lambda i: -gains[i])
    assert [line.split("  ")[-1] for line in lines[4:]] == [LABELS[i]["name"] for i in order]
    assert lines[4].startswith(f"  {gains[order[0]]:+.2f} points")


def test_equal_evaluations_do_not_differ(two, capsys):
    capsys.readouterr()
    assert compare(two / "worse.json", two / "worse.json") == 0
    *_, verdict, classes = capsys.readouterr().out.splitlines()
    assert verdict.endswith("not real, as the interval includes zero")
    assert classes == "classes whose difference of IoU is real: 0 of 3"


def test_a_class_in_one_image_has_no_interval(two, capsys):
    for i in range(1, 12):  # the marking is left in one image
        ids = ids_of(two, "many", str(i))
        save(two / f"many/{i}.png", np.where(ids == 1, 0, ids).astype(np.uint8))
    for kind in ("worse", "better"):
        out = f"--out_path={two / kind}.json"
        assert score(two, out, predictions=kind, labels="many") == 0
    stored = json.loads((two / "better.json").read_text())["classes"]["marking--general"]
    assert stored["iou"] > 0 and stored["iou_low"] is stored["iou_high"] is None
    capsys.readouterr()
    assert compare(two / "worse.json", two / "better.json") == 0
    assert "marking" not in capsys.readouterr().out


def test_evaluations_that_cannot_be_compared_are_refused(two, root, capsys):
    old = {"confusion": [[1, 0], [0, 1]], "mean_iou": 1.0}
    (two / "old.json").write_text(json.dumps(old))
    assert score(root, f"--out_path={two / 'others.json'}") == 0
    for folder in ("one/labels", "one/predictions"):
        save(two / folder / "0.png", ids_of(two, "many", "0"))
    one = {"predictions": "one/predictions", "labels": "one/labels"}
    assert score(two, f"--out_path={two / 'one.json'}", **one) == 0
    for others, message in (
        ("old.json", "files of earlier versions lack. Remedy: evaluate again"),
        ("others.json", "evaluations must be of the same images to be compared; got 12 and 3"),
        ("none.json", "none.json: no such evaluation. Remedy:"),
        ("labels", "validation.json: no such evaluation"),
    ):
        capsys.readouterr()
        assert compare(two / "worse.json", two / others) == 1
        assert message in capsys.readouterr().err
    assert compare(two / "one.json", two / "one.json") == 1
    assert "must have at least 5 images to be compared; got 1" in capsys.readouterr().err
    assert compare(two / "worse.json") == 1
    assert "must be two run folders or evaluation files" in capsys.readouterr().err


def test_out_path_is_checked_before_scoring(root, capsys):
    table = root / "classes.json"
    before = table.read_bytes()
    assert score(root, f"--out_path={table}") == 1
    assert "out_path must not be an input" in capsys.readouterr().err
    assert table.read_bytes() == before
    (root / "folder.json").mkdir()
    assert score(root, f"--out_path={root / 'folder.json'}") == 1
    assert "out_path must be a .json file" in capsys.readouterr().err
    assert not list(root.glob("*.csv"))
