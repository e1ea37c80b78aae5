import json
import shutil
from pathlib import Path

import ablation
import compare_2018
import measure
import numpy as np
import pytest
import recipes
from conftest import TINY
from PIL import Image

from data_prep.sources import find_vistas
from mapseg.config import ModelConfig, TrainConfig
from mapseg.data.manifest import read_manifest
from mapseg.evaluation.scores import Scores
from mapseg.files import file_sha256
from mapseg.labels import LabelClass, make_label_set
from mapseg.model.pretrained import resolve_encoder_weights
from mapseg.runs.checkpoints import find_checkpoint

EXPERIMENTS = Path(recipes.__file__).parent
SMALL = [f"--{name}={value}" for name, value in {**TINY, "steps": 2, "output_stride": 16}.items()]


@pytest.fixture
def camvid_dir(tmp_path):
    """A folder like CamVid's: sky (0) above road (3), a pole (2), void (11) at the bottom."""
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


@pytest.mark.usefixtures("tiny_encoder")
def test_a_recipe_may_start_with_another_run(camvid_dir, tmp_path, capsys, monkeypatch):
    (tmp_path / "first.flags").write_text("\n".join([*SMALL, "--steps=1", "--train_split=train"]))
    recipe = recipes.Recipe(start=str(tmp_path / "first.flags"))
    monkeypatch.setitem(recipes.RECIPES, "camvid_scratch", recipe)
    assert call(camvid_dir, tmp_path / "work", "--seeds=5", "--scales=1") == 0
    runs = {
        name: json.loads((tmp_path / "work" / name / "config.json").read_text())
        for name in ("seed5", "seed5-start")
    }
    assert runs["seed5"]["train"]["init_from"] == str(tmp_path / "work" / "seed5-start")
    assert [runs[name]["train"][key] for name in runs for key in ("seed", "steps")] == [5, 2, 5, 1]
    stored = json.loads((tmp_path / "work" / "results.json").read_text())
    assert stored["protocol"]["start"]["schedule_steps"] == 1
    secs = [measure.trained_secs(tmp_path / "work" / name) for name in runs]
    assert stored["tables"]["val"]["5"]["train_secs"] == pytest.approx(sum(secs))

    # Nothing is done again after a move.
    (tmp_path / "work").rename(tmp_path / "moved")
    before = (tmp_path / "moved" / "results.json").read_text()
    monkeypatch.setattr("mapseg.inference.predictor.load_predictor", None)
    assert call(camvid_dir, tmp_path / "moved", "--seeds=5", "--scales=1") == 0
    assert (tmp_path / "moved" / "results.json").read_text() == before

    # Weights of another first run are another protocol.
    (tmp_path / "first.flags").write_text("\n".join([*SMALL, "--steps=3", "--train_split=train"]))
    assert call(camvid_dir, tmp_path / "moved", "--seeds=5", "--scales=1") == 1
    assert "start" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_encoder")
def test_a_recipe_goes_from_raw_folder_to_numbers(camvid_dir, tmp_path, capsys, monkeypatch):
    work_dir = tmp_path / "work"
    assert call(camvid_dir, work_dir, "--seeds=1", "--scales=1") == 0
    stored = json.loads((work_dir / "results.json").read_text())
    table = stored["tables"]["val"]["1"]
    own = json.loads((work_dir / "seed1" / "evaluation" / "val.json").read_text())
    assert own["mean_iou"] == table["mean_iou"]
    assert table["classes_present"] == 3
    assert own["flip_average"]  # as in the flag file
    assert stored["protocol"]["schedule_steps"] == 2
    assert table["facts"]["precision"] == ["float32"]
    assert table["facts"]["classes"] == [list(table["iou"])]
    digest = read_manifest(work_dir / "records").split("val").digest
    assert table["facts"]["scored on records"] == [digest]
    assert (work_dir / "results.md").read_text().startswith("| val | seed 1 | mean |")

    # Again: nothing is trained or scored a second time.
    monkeypatch.setattr("mapseg.inference.predictor.load_predictor", None)
    before = (work_dir / "results.json").read_text()
    assert call(camvid_dir, work_dir, "--seeds=1", "--scales=1") == 0
    assert (work_dir / "results.json").read_text() == before
    capsys.readouterr()
    for option, message in (
        ("--steps=3", "schedule_steps=2 stored, schedule_steps=3 now"),
        ("--scales=2", "scales=1 stored, scales=2 now"),
        ("--clip_norm=2", "clip_norm=1.0 stored, clip_norm=2.0 now"),
        ("--accumulate_steps=2", "accumulate_steps=1 stored, accumulate_steps=2 now"),
    ):
        assert call(camvid_dir, work_dir, "--seeds=2", "--scales=1", option) == 1
        assert message in capsys.readouterr().err
    # Without the results, the run itself remembers.
    (work_dir / "results.json").unlink()
    assert call(camvid_dir, work_dir, "--seeds=1", "--scales=1", "--steps=1") == 1
    assert "schedule_steps=2 is stored, schedule_steps=1 is requested" in capsys.readouterr().err


class Measured:
    """Stands in for training and scoring; it is stopped at the `last` call."""

    def __init__(self, last=100):
        self.calls, self.last = [], last

    def __call__(self, run_dir, records_dir, split, options, predicting, stopping):
        if len(self.calls) == self.last:
            return None
        manifest = read_manifest(records_dir)
        self.calls.append((str(run_dir), split, manifest.split(split).samples, options["seed"]))
        labels = make_label_set(manifest.classes, "all")
        return measure.Outcome(Scores(np.eye(len(labels.classes), dtype=int), labels), 2.0, {})


def test_all_seeds_start_from_the_same_weights(camvid_dir, own_run_dir, tmp_path, capsys):
    def call_with(seeds):
        start = ["--encoder_weights=none", f"--init_from={own_run_dir}"]
        return call(camvid_dir, tmp_path / "work", "--scales=1", f"--seeds={seeds}", *start)

    assert call_with(1) == 0
    weights_path = find_checkpoint(own_run_dir) / "weights.npz"
    digest = file_sha256(weights_path)
    stored = json.loads((tmp_path / "work" / "results.json").read_text())
    assert stored["tables"]["val"]["1"]["facts"]["initial weights"] == [digest]

    weights = dict(np.load(weights_path))
    np.savez(weights_path, **{name: value + 1 for name, value in weights.items()})
    assert call_with(1) == 0  # done
    capsys.readouterr()
    assert call_with(2) == 1
    assert f"initial weights=['{digest}'] stored" in capsys.readouterr().err


def test_a_recipe_resumes_where_it_was_stopped(camvid_dir, tmp_path, monkeypatch):
    work_dir = tmp_path / "work"
    monkeypatch.setattr(recipes, "measure", Measured(last=1))
    assert call(camvid_dir, work_dir, "--splits=val,train") == 130
    assert list(json.loads((work_dir / "results.json").read_text())["tables"]) == ["val"]
    measured = Measured()
    monkeypatch.setattr(recipes, "measure", measured)
    assert call(camvid_dir, work_dir, "--splits=val,train") == 0
    assert measured.calls == [
        (str(work_dir / f"seed{seed}"), split, samples, seed)
        for seed in (1, 2, 3)
        for split, samples in (("val", 2), ("train", 4))
    ]
    tables = json.loads((work_dir / "results.json").read_text())["tables"]
    assert {name: list(seeds) for name, seeds in tables.items()} == {
        "val": ["1", "2", "3"],
        "train": ["1", "2", "3"],
    }


def test_folds_are_scored_on_held_out_pairs(camvid_dir, tmp_path, monkeypatch):
    measured = Measured()
    monkeypatch.setattr(recipes, "measure", measured)
    assert call(camvid_dir, tmp_path / "work", "--folds=3", "--seeds=5") == 0
    folders = [tmp_path / "work" / f"fold{i}of3" for i in (1, 2, 3)]
    held = [samples for _, _, samples, _ in measured.calls]
    assert sum(held) == 4
    assert measured.calls == [
        (str(folder / "seed5"), recipes.HELD_OUT, samples, 5)
        for folder, samples in zip(folders, held, strict=True)
    ]
    for folder, samples in zip(folders, held, strict=True):
        assert read_manifest(folder / "records").split("train").samples == 4 - samples
    assert "| held_out_of_3 | seed 5 |" in (tmp_path / "work" / "results.md").read_text()


def test_folds_hold_out_every_training_pair_once_and_neighbours_together(camvid_dir):
    (source,) = recipes.find_sources(recipes.RECIPES["camvid_scratch"], camvid_dir)[:1]
    (training,) = source.splits
    held = []
    for number in range(3):
        kept, out = recipes.fold(source, training, number, 3).splits
        assert (kept.name, out.name) == ("train", recipes.HELD_OUT)
        assert {*kept.pairs} | {*out.pairs} == {*training.pairs}
        assert not {*kept.pairs} & {*out.pairs}
        held += out.pairs
    assert held == list(training.pairs)


def test_a_recipe_for_ten_images_takes_them_from_the_whole_dataset(
    records_dir, tmp_path, monkeypatch
):
    vistas_dir = shutil.copytree(records_dir.parent / "vistas", tmp_path / "vistas")
    everything = {
        split.name: [pair.key for pair in split.pairs] for split in find_vistas(vistas_dir).splits
    }
    listed = {"training": everything["training"][-2:], "validation": everything["validation"][:1]}
    (tmp_path / "keys.json").write_text(json.dumps(listed))
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    recipe = recipes.Recipe(keys="keys.json")
    (source,) = recipes.find_sources(recipe, vistas_dir)
    assert {s.name: [pair.key for pair in s.pairs] for s in source.splits} == listed

    # A file without a partner does not matter, unless it is listed.
    labels = vistas_dir / "training" / "labels"
    (labels / f"{everything['training'][0]}.png").unlink()
    (source,) = recipes.find_sources(recipe, vistas_dir)
    assert [split.left_out for split in source.splits] == [{}, {}]
    (labels / f"{listed['training'][0]}.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 training images; 1 are missing, the first is"):
        recipes.find_sources(recipe, vistas_dir)
    listed["training"] = everything["training"][-1:]

    listed["validation"] += ["absent", "gone"]
    (tmp_path / "keys.json").write_text(json.dumps(listed))
    message = "the recipe's 3 validation images; 2 are missing, the first is .*/absent"
    with pytest.raises(FileNotFoundError, match=message):
        recipes.find_sources(recipe, vistas_dir)


@pytest.mark.parametrize("recipe", [["--recipe=vistas_sample"], ["--recipe", "vistas_sample"]])
def test_a_recipe_loads_its_flag_file_in_either_spelling(recipe, monkeypatch):
    commands = []
    monkeypatch.setattr(recipes.cli, "run", lambda work, values, argv, about: commands.append(argv))
    recipes.main(["recipes.py", *recipe, "--steps=7"])
    path = EXPERIMENTS / "vistas_sample.flags"
    assert commands == [["recipes.py", f"--flagfile={path}", *recipe, "--steps=7"]]


def test_results_of_later_calls_are_added(tmp_path):
    def seed(value):
        figures = {"mean_iou": value, "pixel_accuracy": value, "iou": {"a": value, "b": None}}
        return {"train_secs": 1.0, "facts": {"precision": ["float32"]}, **figures}

    beside = recipes.Results(tmp_path, {"steps": 1})  # another process, which began at once
    recipes.Results(tmp_path, {"steps": 1}).add("val", 1, seed(0.1))
    later = recipes.Results(tmp_path, {"steps": 1})
    later.add("val", 2, seed(0.3))
    beside.add("test", 2, seed(0.5))
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert "| mean iou | 10.00% | 30.00% | 20.00% | 10.00% to 30.00% |" in lines
    assert "| mean iou | 50.00% | 50.00% | 50.00% to 50.00% |" in lines
    assert not any("IoU b" in line for line in lines)  # in no label
    written = (tmp_path / "results.json").read_text()
    with pytest.raises(ValueError, match=r"seed 3 must .* stored seed 1; precision=\['float32'\]"):
        later.add("val", 3, seed(0.2) | {"facts": {"precision": ["mixed_bfloat16"]}})
    assert (tmp_path / "results.json").read_text() == written
    with pytest.raises(ValueError, match=r"results\.json: .* steps=1 stored, steps=2 now"):
        recipes.Results(tmp_path, {"steps": 2})

    def without_iou(content):
        del content["tables"]["val"]["1"]["iou"]

    def without_facts(content):
        del content["tables"]["val"]["1"]["facts"]

    def a_name_for_a_seed(content):
        content["tables"]["val"]["x"] = content["tables"]["val"].pop("1")

    def a_list_for_a_table(content):
        content["tables"]["val"] = [1]

    def a_list_for_the_protocol(content):
        content["protocol"] = []

    damages = [without_iou, without_facts, a_name_for_a_seed, a_list_for_a_table]
    for damage in (*damages, a_list_for_the_protocol, None):
        content = json.loads(written) if damage else []
        if damage:
            damage(content)
        (tmp_path / "results.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"results\.json: must be as this program wrote it"):
            recipes.Results(tmp_path, {"steps": 1})


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*_*.flags")), ids=lambda p: p.stem)
def test_every_case_of_the_ablation_fits_every_recipe(path):
    values = ablation.define_flags()
    values(["ablation.py", f"--flagfile={path}"])
    model = recipes.cli.explicit_options(values, ModelConfig)
    train = recipes.cli.explicit_options(values, TrainConfig)
    for case in ablation.CASES.values():
        own = {**model, **{k: v for k, v in case.items() if hasattr(ModelConfig, k)}}
        resolve_encoder_weights(ModelConfig(**own))
        TrainConfig(**{**train, **{k: v for k, v in case.items() if hasattr(TrainConfig, k)}})


def test_folds_are_summed_as_pixels():
    labels = make_label_set([LabelClass(i, f"c{i}", (i, i, i)) for i in range(2)], "all")
    matrices = np.array([[4, 0], [0, 0]]), np.array([[0, 0], [3, 1]])
    outcomes = [measure.Outcome(Scores(m, labels), 2.0, {"sum": int(m.sum())}) for m in matrices]
    table = recipes.add_up(outcomes)
    assert table["facts"] == {"sum": [4, 4]}
    assert table["iou"] == {"c0": 4 / 7, "c1": 1 / 4}
    assert table["train_secs"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds=1"], "folds must be 0 (off), or from 2 to the 4 pairs of train; got 1"),
        (["--folds=5"], "to the 4 pairs of train; got 5"),
        (["--folds=2", "--splits=val"], "splits must not be set with --folds"),
        (["--splits=val,test"], "splits must be among train, val; got test"),
        (["--train_split=training"], "data_dir must contain training, which is trained on; got"),
        (["--seeds=1,x"], "seeds must be comma-separated integers"),
        (["--seeds=1,2,1"], "seeds must be distinct; got 1,2,1"),
        (["--seed=2"], "seed must be given by --seeds"),
        (["--data_dir=nowhere"], "nowhere: data_dir must contain train, val, test"),
        (["--recipe="], "recipe"),
    ],
)
def test_a_bad_call_of_a_recipe_is_reported(camvid_dir, tmp_path, capsys, options, message):
    common = ["--recipe=camvid_scratch", f"--data_dir={camvid_dir}", f"--work_dir={tmp_path / 'w'}"]
    assert recipes.main(["recipes.py", *common, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_an_ablation_reports_the_gain_of_each_case(records_dir, tmp_path, monkeypatch, capsys):
    def stand_in(run_dir, records_dir, split, options, predicting, stopping):
        labels = make_label_set(read_manifest(records_dir).classes, "all")
        # IoU of 4/5, 4/6, 4/5 with seed 1, and of 4/6, 4/8, 4/6 with seed 2.
        wrong = 1 if options["loss"] == "ce" else 0
        confusion = np.diag([4, 4, 4]) + np.eye(3, k=1, dtype=int) * wrong * options["seed"]
        precisions.append(options["precision"])
        facts = {"precision": "float32", "classes": classes.get(options["loss"], "all")}
        return measure.Outcome(Scores(confusion, labels), 2.0, facts)

    precisions, classes = [], {}

    monkeypatch.setattr(ablation, "measure", stand_in)
    common = [f"--records_dir={records_dir}", f"--work_dir={tmp_path}", "--seeds=1,2"]
    common += ["--encoder=resnet50", "--encoder_weights=none", "--loss=ce"]
    common.append("--only=--loss=ce,--loss=focal,--encoder=efficientnet_lite2")
    lite2 = ablation.CASES["--encoder=efficientnet_lite2"]
    monkeypatch.setitem(lite2, "encoder_weights", str(tmp_path / "not there"))
    assert ablation.main(["ablation.py", *common, "--classes=flat--road"]) == 0
    *said, base, focal = capsys.readouterr().out.splitlines()
    same, absent = (line for line in said if line.startswith("skipped: "))
    assert same == "skipped: --loss=ce: the base has this option already"
    assert absent.startswith("skipped: --encoder=efficientnet_lite2: ") and "not there" in absent
    assert base.startswith("| base | 2 | 68.33 (61.11 to 75.56) |  | 73.33 (66.67 to 80.00) |  |")
    # Gains of 38.89 and 24.44: mean 31.67 plus or minus 12.706 times 7.22.
    assert focal.startswith(
        "| --loss=focal | 2 | 100.00 (100.00 to 100.00) | +31.67 (-60.10 to +123.43) |"
    )
    assert precisions == ["auto", *3 * ["float32"]]  # that of the first run, on any machine
    classes["focal"] = "changed since"
    assert ablation.main(["ablation.py", *common]) == 1
    message = "loss_focal-seed1: all runs must have the data, classes and precision of the first"
    error = capsys.readouterr().err
    assert message in error and "classes=all stored, classes=changed since now" in error
    precisions.clear()
    assert ablation.main(["ablation.py", *common, "--label_smoothing=0.1"]) == 1
    assert "label_smoothing must be used with a loss of ce, ohem" in capsys.readouterr().err
    assert not precisions  # before the base is trained
    assert ablation.main(["ablation.py", *common, "--classes=boat"]) == 1
    assert "classes must be names of this label set" in capsys.readouterr().err
    assert ablation.main(["ablation.py", *common, "--only=--boat"]) == 1
    assert "only must be of" in capsys.readouterr().err


def test_gains_have_an_interval_over_the_seeds():
    # Mean 2, standard deviation 1: the interval is 2 plus or minus 4.303 / sqrt(3).
    assert ablation.gain_text(np.array([1.0, 2.0, 3.0])) == "+2.00 (-0.48 to +4.48)"
    assert ablation.gain_text(np.array([1.5])) == "+1.50"  # one seed shows nothing about others


def test_a_finished_ablation_prints_its_table_once(records_dir, tmp_path, monkeypatch, capsys):
    def stand_in(run_dir, records_dir, split, options, predicting, stopping):
        (run_dir / "evaluation").mkdir(parents=True, exist_ok=True)
        (run_dir / "evaluation" / f"{split}.json").touch()
        labels = make_label_set(read_manifest(records_dir).classes, "all")
        return measure.Outcome(Scores(np.eye(3, dtype=int), labels), 2.0, {"precision": "float32"})

    monkeypatch.setattr(ablation, "measure", stand_in)
    command = ["ablation.py", f"--records_dir={records_dir}", f"--work_dir={tmp_path}"]
    command += ["--encoder=resnet50", "--encoder_weights=none", "--only=--clip_norm=1"]
    tables = []
    for _ in range(2):
        assert ablation.main([*command, "--seeds=1,2"]) == 0
        tables.append(capsys.readouterr().out.count("| case |"))
    assert tables == [4, 1]  # one after each new run


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


def test_a_colour_map_is_not_taken_for_a_prediction_of_2018(tmp_path):
    path = tmp_path / "k.png"
    Image.fromarray(np.zeros([2, 3, 3], np.uint8)).save(path)
    with pytest.raises(ValueError, match=f"{path}: a prediction must be .* got 8-bit RGB"):
        compare_2018.read_map(path, "prediction")


def test_a_run_is_compared_with_the_predictions_of_2018(
    records_dir, run_dir, tmp_path, capsys, monkeypatch
):
    # These records lack the 66 labels of 2018.
    monkeypatch.setattr(compare_2018, "make_label_set", lambda c, _: make_label_set(c, "all"))
    vistas_dir = records_dir.parent / "vistas"
    for path in (vistas_dir / "validation" / "labels").iterdir():
        for name, lowest in (("raw_66", 0), ("downsized_66", 2)):  # the latter finds sky alone
            (tmp_path / name).mkdir(exist_ok=True)
            ids = np.maximum(np.asarray(Image.open(path)), lowest)
            Image.fromarray(ids).save(tmp_path / name / path.name)
    common = [
        f"--vistas_dir={vistas_dir}",
        f"--predictions_dir={tmp_path}",
        f"--run_dirs={run_dir}",
    ]
    assert compare_2018.main(["compare_2018.py", *common, f"--out_dir={tmp_path / 'bare'}"]) == 0
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["panels"]
    capsys.readouterr()
    common.append(f"--frames={vistas_dir / 'validation' / 'images'}")
    assert compare_2018.main(["compare_2018.py", *common, f"--out_dir={tmp_path / 'out'}"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | " in line]
    by_name = {row[0].strip("| "): row[1:] for row in rows}
    assert by_name["raw_66"][:3] == ["100.00%", "100.00%", "100.00%"]
    assert by_name["downsized_66"][2] == "0.00%"
    evaluated = json.loads((run_dir / "evaluation" / "validation.json").read_text())
    assert by_name[str(run_dir)][1] == f"{evaluated['pixel_accuracy']:.2%}"
    for name in ("panels", "frames/overlay", "frames/panel"):
        assert len(list((tmp_path / "out" / name).glob("*.jpg"))) == 3, name


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (np.full([4, 5], 255, np.uint8), "ids must be below 2; got 255. Remedy: copy it again"),
        (np.zeros([2, 5], np.uint8), "must have the size of the label, 4 x 5 .*; got 2 x 5. Rem"),
    ],
)
def test_a_prediction_of_2018_with_other_ids_or_another_size_is_refused(tmp_path, ids, problem):
    path = tmp_path / "k.png"
    Image.fromarray(ids).save(path)
    with pytest.raises(ValueError, match=f"{path}: {problem}"):
        compare_2018.read_guess(path, (4, 5), 2)


def test_a_run_of_other_classes_is_not_compared(records_dir, run_dir, tmp_path, capsys):
    vistas_dir = shutil.copytree(records_dir.parent / "vistas", tmp_path / "vistas")
    config = json.loads((vistas_dir / "config_v1.2.json").read_text())
    config["labels"][0]["name"] = "flat--parking"
    (vistas_dir / "config_v1.2.json").write_text(json.dumps(config))
    places = {"vistas_dir": vistas_dir, "predictions_dir": tmp_path, "out_dir": tmp_path / "out"}
    arguments = [f"--{name}={place}" for name, place in places.items()]
    assert compare_2018.main(["compare_2018.py", *arguments, f"--run_dirs={run_dir}"]) == 1
    assert f"{run_dir}: run_dirs must be of the classes of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_ablation_refuses_an_unknown_split_before_training(records_dir, tmp_path, capsys):
    arguments = [f"--records_dir={records_dir}", f"--work_dir={tmp_path / 'w'}", "--eval_split=zzz"]
    assert ablation.main(["ablation.py", *arguments]) == 1
    assert f"{records_dir}: split must be one of training, validation; got zzz" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "w").exists()
