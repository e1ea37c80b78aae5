import json
from pathlib import Path

import ablation
import compare_2018
import numpy as np
import pytest
import recipes
from conftest import TINY
from PIL import Image

from mapseg.config import ModelConfig, TrainConfig
from mapseg.encoders import resolve_encoder_weights
from mapseg.labels import LabelClass, make_label_set
from mapseg.scores import Scores

EXPERIMENTS = Path(recipes.__file__).parent
SMALL = [f"--{name}={value}" for name, value in {**TINY, "steps": 2}.items()]


@pytest.fixture
def camvid_dir(tmp_path):
    """A folder as CamVid's: sky (0) above road (3), a pole (2), void (11) at the bottom."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / "camvid" / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.full([40, 56], 3, np.uint8)
            label[: rng.integers(10, 20)], label[:, 20:24], label[-3:] = 0, 2, 11
            image = np.repeat(20 * label[..., np.newaxis], 3, 2)
            Image.fromarray(image).save(tmp_path / f"camvid/{split}/images/{i}.png")
            Image.fromarray(label).save(tmp_path / f"camvid/{split}/labels/{i}.png")
    return tmp_path / "camvid"


def call(camvid_dir, work_dir, *options):
    where = [f"--data_dir={camvid_dir}", f"--work_dir={work_dir}", "--recipe=camvid_scratch"]
    return recipes.main(["recipes.py", *where, *SMALL, *options])


def test_a_recipe_goes_from_raw_folder_to_numbers(camvid_dir, tmp_path):
    work_dir = tmp_path / "work"
    assert call(camvid_dir, work_dir, "--seeds=1", "--scales=1") == 0
    found = json.loads((work_dir / "results.json").read_text())["val"]["1"]
    own = json.loads((work_dir / "seed1" / "evaluation" / "val.json").read_text())
    assert own["mean_iou"] == found["mean_iou"]
    assert found["classes_present"] == 3
    assert own["flip_average"]  # as the flag file says
    assert (work_dir / "results.md").read_text().startswith("| val | seed 1 | mean |")


def test_folds_hold_out_every_training_pair_once(camvid_dir):
    (source,) = recipes.find_sources(recipes.RECIPES["camvid_scratch"], camvid_dir)[:1]
    pairs, held = source.splits[0].pairs, []
    for number in range(3):
        (part,) = recipes.fold(source, "train", number, 3)
        training, out = part.splits
        assert (training.name, out.name) == ("train", recipes.HELD_OUT)
        assert {*training.pairs} | {*out.pairs} == {*pairs}
        assert not {*training.pairs} & {*out.pairs}
        held += out.pairs
    assert sorted(held, key=str) == sorted(pairs, key=str)


@pytest.mark.parametrize("given", [["--recipe=vistas_sample"], ["--recipe", "vistas_sample"]])
def test_a_recipe_brings_its_flag_file_however_it_is_spelled(given, monkeypatch):
    found = []
    monkeypatch.setattr(recipes.cli, "run", lambda work, values, argv, about: found.append(argv))
    recipes.main(["recipes.py", *given, "--steps=7"])
    path = EXPERIMENTS / "vistas_sample.flags"
    assert found == [["recipes.py", f"--flagfile={path}", *given, "--steps=7"]]


def test_results_of_later_calls_are_added(tmp_path):
    def seed(value):
        figures = {"mean_iou": value, "pixel_accuracy": value, "iou": {"a": value, "b": None}}
        return {"train_secs": 1.0, **figures}

    recipes.write(tmp_path, {"val": {"1": seed(0.1)}})
    recipes.write(tmp_path, {"val": {"2": seed(0.3)}, "test": {"2": seed(0.5)}})
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert "| mean iou | 10.00% | 30.00% | 20.00% | 10.00% to 30.00% |" in lines
    assert "| mean iou | 50.00% | 50.00% | 50.00% to 50.00% |" in lines
    assert not any("IoU b" in line for line in lines)  # in no label


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*_*.flags")), ids=lambda p: p.stem)
def test_every_case_of_the_ablation_goes_with_every_recipe(path):
    values = ablation.define_flags()
    values(["ablation.py", f"--flagfile={path}"])
    model = recipes.cli.given(values, ModelConfig)
    train = recipes.cli.given(values, TrainConfig)
    for case in ablation.CASES.values():
        own = {**model, **{k: v for k, v in case.items() if hasattr(ModelConfig, k)}}
        resolve_encoder_weights(ModelConfig(**own))
        TrainConfig(**{**train, **{k: v for k, v in case.items() if hasattr(TrainConfig, k)}})


def test_folds_add_up_as_pixels():
    labels = make_label_set([LabelClass(i, f"c{i}", (i, i, i)) for i in range(2)], "all")
    matrices = np.array([[4, 0], [0, 0]]), np.array([[0, 0], [3, 1]])
    outcomes = [recipes.Outcome(Scores(matrix, labels), 2.0) for matrix in matrices]
    found = recipes.add_up(outcomes)
    assert found["iou"] == {"c0": 4 / 7, "c1": 1 / 4}
    assert found["train_secs"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds=1"], "folds must be 0"),
        (["--data_dir=nowhere"], "nowhere: data_dir must have train, val, test"),
        (["--recipe="], "recipe"),
    ],
)
def test_what_a_recipe_cannot_do_is_told(tmp_path, capsys, options, message):
    given = ["--recipe=camvid_scratch", "--data_dir=d", f"--work_dir={tmp_path / 'w'}"]
    assert recipes.main(["recipes.py", *given, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_predictions_are_compared_image_by_image():
    labels = make_label_set([LabelClass(i, f"c{i}", (i, i, i)) for i in range(2)], "all")
    truth = [np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 255, 1, 1]], np.uint8)]
    guesses = {"right": truth, "wrong": [1 - np.minimum(t, 1) for t in truth]}
    guesses["right"] = [np.minimum(t, 1) for t in truth]

    class Pair:
        key = "k"

    text = compare_2018.table(guesses, truth, labels, "c1", [Pair, Pair])
    right, wrong = text.splitlines()[2:]
    assert right == "| right | " + " | ".join(["100.00%"] * 5) + " |"
    assert wrong == "| wrong | " + " | ".join(["0.00%"] * 5) + " |"
    drawn = compare_2018.side_by_side({"a": np.zeros([5, 7, 3]), "b": np.ones([5, 7, 3])})
    assert drawn.shape == (5 + 24, 14, 3)
