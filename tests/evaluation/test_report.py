"""The report: what it finds in an evaluation, and a page that is complete and safe."""

import base64
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from conftest import ROOT, TINY
from report_by_hand import HOSTILE, make_classes, pictures_of, scenes, store

import train_main
from mapseg import cli
from mapseg.config import ModelConfig, TrainConfig
from mapseg.data.batches import read_samples
from mapseg.data.resizing import resize_label
from mapseg.estimator import Estimator
from mapseg.evaluation import evaluate
from mapseg.evaluation.counting import count_image
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.evaluation.report import __main__ as command_line
from mapseg.evaluation.report import write
from mapseg.evaluation.report.choice import choose_images
from mapseg.evaluation.report.command import changed_options, train_command
from mapseg.evaluation.report.contents import score_values
from mapseg.evaluation.report.curves import history_curves
from mapseg.evaluation.report.findings import worst_confusions
from mapseg.evaluation.report.write import write_report
from mapseg.files import WriteError
from mapseg.labels import make_label_set
from mapseg.pages import thumbnails
from mapseg.pages.rendering import percent, points, script_json, short_names
from mapseg.runs.folder import open_run


def evaluation_with(count, images, seed=0):
    label_set = make_label_set(make_classes(count), "all")
    pairs = list(scenes(count, images, seed))
    return evaluation_of(
        [count_image(str(i), *pair, label_set) for i, pair in enumerate(pairs)], label_set
    ), pairs


def quiet(_):
    pass


class Page(HTMLParser):
    """What a page contains: scripts, the text outside of them, and all attributes."""

    def __init__(self, path):
        super().__init__()
        self.scripts, self.words, self.attributes, self._inside = [], [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)


# --- findings


def test_the_worst_confusions_equal_a_count_in_python():
    evaluation, pairs = evaluation_with(5, 4)
    pixels, errors, rows = {}, 0, {}
    for i, (label, prediction) in enumerate(pairs):
        for a, b in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if a != 255:
                rows[a] = rows.get(a, 0) + 1
                if a != b:
                    errors += 1
                    pixels.setdefault((a, b), [0] * 4)[i] += 1
    expected = sorted(pixels, key=lambda pair: (-sum(pixels[pair]) / rows[pair[0]], pair))[:6]
    confusions = worst_confusions(evaluation, 6)
    assert [(c.label, c.prediction) for c in confusions] == expected
    for c in confusions:
        by_image = pixels[c.label, c.prediction]
        assert c.share == pytest.approx(sum(by_image) / rows[c.label])
        assert c.of_errors == pytest.approx(sum(by_image) / errors)
        assert by_image[c.images[0]] == max(by_image) and 0 not in [by_image[i] for i in c.images]


def test_a_confusion_of_a_few_pixels_is_not_listed():
    label_set = make_label_set(make_classes(3), "all")
    label = np.zeros((100, 100), np.uint8)
    label[0, 0] = 2
    prediction = np.zeros_like(label)
    prediction[50:] = 1
    evaluation = evaluation_of([count_image("a", label, prediction, label_set)], label_set)
    assert [(c.label, c.prediction) for c in worst_confusions(evaluation, 9)] == [(0, 1)]
    right = evaluation_of([count_image("a", label, label, label_set)], label_set)
    assert worst_confusions(right, 9) == []


def test_the_worst_the_best_and_the_worst_of_each_class_are_chosen():
    evaluation, _ = evaluation_with(6, 30)
    scores, by_class = evaluation.image_mean_iou, evaluation.image_iou
    chosen = choose_images(evaluation, 30)
    assert chosen == np.argsort(scores, kind="stable").tolist()
    few = choose_images(evaluation, 18)
    assert len(few) == 18 and few == [i for i in chosen if i in few]
    assert {int(scores.argmin()), int(scores.argmax())} <= {*few}
    assert {int(i) for i in np.nanargmin(by_class, axis=0)} <= {*few}
    assert 17 in choose_images(evaluation, 4, [[17]])
    assert choose_images(evaluation, 0) == []


def test_images_without_labels_are_not_chosen():
    label_set = make_label_set(make_classes(2), "all")
    zeros, void = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    counts = [count_image(n, label, zeros, label_set) for n, label in (("a", void), ("b", zeros))]
    assert choose_images(evaluation_of(counts, label_set), 9) == [1]


def test_short_names_are_unique():
    names = ["object--vehicle--car", "toy--vehicle--car", "nature--sky", "a--b--c", "c"]
    assert short_names(names) == ["object--vehicle--car", "toy--vehicle--car", "nature--sky"] + [
        "b--c",
        "c",
    ]


def test_the_command_has_the_options_of_the_run(tmp_path):
    options = {"steps": 7, "flip": False, "loss": "ohem", "sync_batch_norm": True}
    store(tmp_path / "a run", make_classes(2), schedule_steps=9, **options)
    run = open_run(tmp_path / "a run")
    lines = train_command(run, tmp_path / "it's here")
    assert f"--run_dir='{tmp_path}/a run'" in lines
    shown = " ".join(lines[3:])
    assert "--noflip" in shown and "--batch_size" not in shown
    values = train_main.define_flags()
    values(["train_main.py", *lines[3:]])
    given = cli.explicit_options(values, ModelConfig, TrainConfig)
    assert given == changed_options(run)
    assert {**options, "schedule_steps": 9}.items() <= given.items()
    assert "--records_dir=RECORDS" in train_command(run, None)


def test_numbers_of_the_page():
    assert percent(0.5936) == "59.4\N{NARROW NO-BREAK SPACE}%"
    assert percent(None) == percent(float("nan")) == points(float("nan"))
    assert (points(0.0312), points(-0.0312)) == ("+3.1", "\N{MINUS SIGN}3.1")


def test_curves_have_the_colours_of_the_page_and_text():
    rows = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, "mean_iou": 0.1} for s in (1, 2, 3)]
    charts = history_curves({"a": rows, "b": rows}, 0.5)
    assert charts[0].title == "Training loss" and len(charts) == 3
    for chart in charts:
        assert "var(--series-1)" in chart.svg and "currentColor" in chart.svg
        assert ">step</text>" in chart.svg and "#0" not in re.sub(r'(ref="|url\()#', "", chart.svg)
    ids = re.findall(r'\bid="([^"]+)"', "".join(chart.svg for chart in charts))
    assert len(ids) == len({*ids})
    assert history_curves({"a": []}, 0.5) == []


# --- the page


@pytest.mark.parametrize("count", [2, 19, 124])
def test_a_page_is_complete_and_hostile_names_are_text(count, tmp_path, monkeypatch):
    classes = make_classes(count, HOSTILE)
    pairs = store(tmp_path / "run", classes, image_names=HOSTILE[:4])
    palette = make_label_set(classes, "all").palette
    monkeypatch.setattr(write, "make_pictures", pictures_of(pairs, palette))
    path = write_report(tmp_path / "run", tmp_path, quiet)
    assert path == tmp_path / "run" / "report" / "index.html"
    page = Page(path)
    assert len(page.scripts) == 2
    used = {c["name"] for c in page.data["classes"]}
    assert {*HOSTILE[: min(count, 5)]} <= used and len(used) == count
    assert page.text.count(HOSTILE[0]) > 2 and HOSTILE[0] not in page.source
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    links = [v for _, n, v in page.attributes if n in ("src", "href", "action", "poster", "srcset")]
    assert links and all(v.startswith(("data:", "#")) for v in links)
    assert "http" not in re.sub(r'xmlns(:\w+)?="http[^"]*"|http-equiv', "", page.source)
    assert re.search(r"url\((?!#)|@import", page.source) is None
    ids = [v for _, n, v in page.attributes if n == "id"]
    assert len(ids) == len({*ids})
    assert len(page.data["pictures"]) == 6


def test_data_cannot_end_its_script_and_comes_back():
    data = {"a": [*HOSTILE, "<!-- \u2028 &amp;"], "b": 1.5}
    text = script_json(data)
    assert not set("<>&") & {*text} and json.loads(text) == data


def test_the_policy_of_the_page_allows_its_own_script_only(tmp_path):
    store(tmp_path / "run", make_classes(2))
    page = Page(write_report(tmp_path / "run", None, quiet))
    (policy,) = [v for _, n, v in page.attributes if n == "content" and "default-src" in v]
    assert "default-src 'none'" in policy and "img-src data:;" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy) and "unsafe-eval" not in policy


def test_a_run_without_an_evaluation(tmp_path):
    store(tmp_path / "run", make_classes(3))
    shutil.rmtree(tmp_path / "run" / "evaluation")
    lines = []
    page = Page(write_report(tmp_path / "run", None, lines.append))
    assert "There is no evaluation of validation" in page.text
    assert "python train_main.py --mode=evaluate" in page.text and len(lines) == 1
    assert "Training loss" in page.text and page.data["pictures"] == []
    (tmp_path / "run" / "history.csv").unlink()
    page = Page(write_report(tmp_path / "run", None, quiet))
    assert "no history of training" in page.text and "--encoder=mobilenet_v2" in page.text


def test_an_evaluation_of_an_earlier_version(tmp_path):
    run_dir = shutil.copytree(ROOT / "tests/old_versions/ea21d24/run", tmp_path / "run")
    page = Page(write_report(run_dir, None, quiet))
    assert "no counts of each image, as an earlier version wrote it" in page.text
    assert "11.5 %" in page.text and "interval states" not in page.text
    assert "thin lines" not in page.text and "page shows photographs" in page.text


def test_an_evaluation_without_details(tmp_path):
    store(tmp_path / "run", make_classes(3), details=False)
    page = Page(write_report(tmp_path / "run", None, quiet))
    assert "Boundaries were not counted" in page.text
    assert "95 % interval" in page.text


def test_runs_are_compared(tmp_path):
    classes = make_classes(4)
    store(tmp_path / "run", classes, 20, wrong=0.05)
    store(tmp_path / "other", classes, 20, wrong=0.5, batch_size=3)
    lines = []
    path = write_report(tmp_path / "run", None, lines.append, compare=[tmp_path / "other"])
    page = Page(path)
    assert lines[0].startswith("Better than other: ") and "The difference is real" in lines[0]
    assert lines[0] in page.text
    assert "batch_size 16 instead of 3" in page.text
    assert "var(--series-1)" in page.source and "Images that differ most from other" in page.text
    same = shutil.copytree(tmp_path / "run", tmp_path / "same")
    write_report(tmp_path / "run", None, lines.append, compare=[same])
    assert any(line.startswith("No real difference from same") for line in lines)


def test_runs_that_cannot_be_compared_are_shown_with_the_reason(tmp_path):
    store(tmp_path / "run", make_classes(4))
    store(tmp_path / "other", make_classes(5))
    store(tmp_path / "bare", make_classes(4))
    shutil.rmtree(tmp_path / "bare" / "evaluation")
    others = [tmp_path / "other", tmp_path / "bare"]
    page = Page(write_report(tmp_path / "run", None, quiet, compare=others))
    assert "Cannot be compared with other: evaluations must have the same classes" in page.text
    assert "bare has no evaluation of validation" in page.text
    with pytest.raises(ValueError, match="runs must be given once"):
        write_report(tmp_path / "run", None, quiet, compare=[tmp_path / "bare" / ".." / "run"])


def test_one_hundred_images_stay_below_15_mb(tmp_path, monkeypatch):
    classes, rng = make_classes(124), np.random.default_rng(0)
    pairs = store(tmp_path / "run", classes, 100)
    grain = rng.normal(0, 12, (2048, 2048, 3))
    street = cv2.resize(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8), (2048, 2048))
    photo = np.clip(street + grain, 0, 255).astype(np.uint8)
    photo_uri = thumbnails.encode_photo(photo)
    monkeypatch.setattr("report_by_hand.encode_photo", lambda _: photo_uri)
    # Label maps as detailed as those of street scenes: about 300 regions.
    coarse = rng.integers(0, 124, (17, 17)).astype(np.uint8)
    fine = resize_label(coarse, (512, 512))
    fine = np.roll(fine, rng.integers(0, 9, 512), axis=1)
    detailed = [(fine, fine)] * len(pairs)
    palette = make_label_set(classes, "all").palette
    monkeypatch.setattr(write, "make_pictures", pictures_of(detailed, palette))
    path = write_report(tmp_path / "run", tmp_path, quiet, images=100)
    assert len(Page(path).data["pictures"]) == 100
    assert 2e6 < path.stat().st_size < 15e6


def test_the_name_of_a_run_may_hold_bytes_that_are_not_utf_8(tmp_path):
    run_dir = tmp_path / os.fsdecode(b"Z\xfcrich")
    store(run_dir, make_classes(3))
    page = Page(write_report(run_dir, None, quiet))
    assert r"Z\xfcrich: report" in page.text and r"Z\xfcrich" in page.text.partition("repeat it")[2]


def test_classes_that_are_not_evaluated_are_not_listed_as_without_labels():
    classes = make_classes(66, ("unlabeled",))
    label_set = make_label_set((replace(classes[0], evaluate=False), *classes[1:]), "all_66")
    counts = [count_image("0", *pair, label_set) for pair in scenes(66, 1)]  # of classes 0 to 7
    absent = score_values(evaluation_of(counts, label_set), [], [])["absent"]
    assert absent == [c.name for c in classes[8:]]


# --- pictures


def decode(uri):
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


@pytest.fixture
def scored(own_run_dir, records_dir):
    Estimator(own_run_dir, quiet).evaluate(records_dir)
    return own_run_dir


def test_the_estimator_writes_as_many_panels_as_the_run_asks_for(own_run_dir, records_dir):
    config_path = own_run_dir / "config.json"
    config = json.loads(config_path.read_text())
    config["train"]["eval_panels"] = 0
    config_path.write_text(json.dumps(config))
    shutil.rmtree(own_run_dir / "evaluation", ignore_errors=True)
    Estimator(own_run_dir, quiet).report(records_dir)
    assert not [*(own_run_dir / "evaluation").rglob("*.jpg")]


def test_pictures_show_labels_and_predictions(scored, records_dir, monkeypatch):
    monkeypatch.setattr(thumbnails, "LONG_SIDE_PX", 40)
    path = write_report(scored, records_dir, quiet, full_pictures=True)
    page = Page(path)
    names = [picture["name"] for picture in page.data["pictures"]]
    scores = [picture["score"] for picture in page.data["pictures"]]
    assert len(names) == 3 and scores == sorted(scores)
    estimator = Estimator(scored, quiet)
    samples = {
        key.decode(): (image, label)
        for image, label, key in read_samples(records_dir, "validation").as_numpy_iterator()
    }
    for i, picture in enumerate(page.data["pictures"]):
        image, label = samples[picture["name"]]
        prediction = estimator.predict(image).ids
        small = (30, 40)
        np.testing.assert_array_equal(decode(picture["label"]), resize_label(label, small))
        np.testing.assert_array_equal(
            decode(picture["predictions"][0]), resize_label(prediction, small)
        )
        full = cv2.imread(str(path.parent / f"pictures/{i:03d}-image.jpg"))[..., ::-1]
        assert np.abs(full.astype(int) - image).mean() < 4
    links = [v for t, n, v in page.attributes if t == "a" and n == "href" and v[0] != "#"]
    assert len(links) == 9 and all((path.parent / link).is_file() for link in links)


def test_other_records_and_weights_are_refused(scored, records_dir, tmp_path):
    facts = json.loads((scored / "evaluation/validation.json").read_text())

    def stored(**changes):
        text = json.dumps({**facts, **changes})
        (scored / "evaluation/validation.json").write_text(text)
        return write_report(scored, records_dir, quiet)

    with pytest.raises(
        ValueError, match=r"the records must be those.*Remedy: python train_main.py --mode=evaluate"
    ):
        stored(records_digest="0")
    with pytest.raises(
        ValueError, match=r"the weights must be those.*Remedy: python train_main.py --mode=evaluate"
    ):
        stored(weights_sha256="0")
    with pytest.raises(FileNotFoundError, match=r"got none of step 3. Remedy: python train_main"):
        stored(step=3)
    assert not (scored / "report").exists()


def test_the_command(scored, records_dir, tmp_path, capsys):
    frames_dir = tmp_path / "frames"
    frames_dir.mkdir()
    arguments = [f"--run_dir={scored}", f"--records_dir={records_dir}", "--images=1"]
    command = ["report", *arguments, f"--frames_dir={frames_dir}"]
    assert command_line.main(command) == 1
    assert "must be an output folder of infer_main.py" in capsys.readouterr().err
    (frames_dir / "inference.json").write_text("{}")
    (frames_dir / "frames.csv").write_text("frame,mean_confidence\na/b <i>,0.5\nc,\n")
    assert command_line.main(command) == 1
    assert "must hold overlays" in capsys.readouterr().err
    (frames_dir / "overlay/a").mkdir(parents=True)
    cv2.imwrite(str(frames_dir / "overlay/a/b <i>.jpg"), np.zeros((9, 16, 3), np.uint8))
    assert command_line.main(command) == 0
    assert f"wrote {scored}/report/index.html" in capsys.readouterr().out
    page = Page(scored / "report" / "index.html")
    assert "a/b <i>" in page.text and len(page.data["pictures"]) == 1


def test_evaluation_names_the_command(own_run_dir, records_dir, capsys):
    arguments = ["--mode=evaluate", f"--run_dir={own_run_dir}", f"--records_dir={records_dir}"]
    assert train_main.main(["train_main.py", *arguments, "--compile_cache_dir="]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    command = last.removeprefix("to write a report: python -m mapseg.evaluation.report").split()
    assert command_line.main(["report", *command]) == 0


@pytest.mark.usefixtures("tiny_encoder")
def test_training_ends_with_a_report(records_dir, tmp_path, capsys, monkeypatch):
    run_dir = tmp_path / "run"
    flags = {**TINY, "records_dir": records_dir, "run_dir": run_dir, "compile_cache_dir": ""}
    command = ["train_main.py", *(f"--{name}={value}" for name, value in flags.items())]
    assert train_main.main([*command, "--noreport"]) == 0
    assert not (run_dir / "report").exists()

    # The same command again has nothing to train, but a page to write.
    assert train_main.main(command) == 0
    out = capsys.readouterr().out
    assert f"wrote {run_dir / 'report' / 'index.html'}" in out
    page = Page(run_dir / "report" / "index.html")
    assert len(page.data["pictures"]) == 3 and "Boundary IoU" in page.text
    assert "Machine" in page.text and "CPU (" in page.text
    stored = json.loads((run_dir / "evaluation" / "validation.json").read_text())
    assert stored["mean_boundary_iou"] is not None

    # Now the evaluation has its details: it is not repeated.
    monkeypatch.setattr(evaluate, "evaluate", None)
    assert train_main.main(command) == 0
    assert "wrote" in capsys.readouterr().out

    def fail(*_):
        raise WriteError(28, "no space")

    monkeypatch.setattr(write, "write_report", fail)
    assert train_main.main(command) == 0
    assert "WARNING: the run is trained, but its report failed: " in capsys.readouterr().out
