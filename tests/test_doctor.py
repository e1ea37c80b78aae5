import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, tf_config

import train_main
from mapseg import doctor, machine
from mapseg.checks import environment, options, records, steps
from mapseg.checks.case import Finding
from mapseg.config import ModelConfig, TrainConfig
from mapseg.data.batches import CropStream
from mapseg.data.manifest import read_manifest, write_manifest
from mapseg.labels import make_label_set
from mapseg.machine import DriverReport, Gpu
from mapseg.runs import checkpoints
from mapseg.runs.folder import store_run
from mapseg.training import state as building
from mapseg.training import trial as trying
from mapseg.training.prepare import begin_run
from mapseg.training.trial import Trial

FLAGS = [f"--{name}={value}" for name, value in TINY.items()]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(records, "_INPUT_SECS", 0.2)


@pytest.fixture
def cheap(monkeypatch):
    """Leaves out the checks that need a network."""
    monkeypatch.setattr(doctor, "CHECKS", doctor.CHECKS[:-5])


def call(capsys, *arguments):
    """Runs the doctor; returns the exit code, and by name the (level, text) of each check."""
    code = doctor.main(["doctor", *FLAGS, *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    findings = {}
    for line in lines:
        level, rest = line.split(maxsplit=1)
        name, _, text = rest.partition(": ")
        findings[name] = (level, text)
    assert list(findings) == [name for name, _, _ in doctor.CHECKS]
    return code, findings


def levels(findings, level):
    return [name for name, (its_level, _) in findings.items() if its_level == level]


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def first_keys(records_dir):
    manifest = read_manifest(records_dir)
    return CropStream(
        manifest, TrainConfig(batch_size=2), make_label_set(manifest.classes, "all")
    ).keys(0)


def fake_step(monkeypatch, answer):
    """Replaces the compiled step by `answer(crops)`."""

    def make_step(state, config, strategy, class_pixels):
        return lambda image, label: answer(len(image))

    monkeypatch.setattr(trying, "make_step", make_step)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("together", [True, False])
def test_batch_norm_is_checked_over_the_crops_of_all_workers(
    records_dir, capsys, monkeypatch, together
):
    for name, value in tf_config([1, 2], 0).items():
        monkeypatch.setenv(name, value)
    options = [f"--sync_batch_norm={str(together).lower()}", "--batch_size=2"]
    _, findings = call(capsys, f"--records_dir={records_dir}", *options)
    level, text = findings["network"]
    assert (level, "as one of 2 workers" in text, "two crops or more" in text) == (
        ("ok", True, False) if together else ("FAIL", False, True)
    )


@pytest.mark.usefixtures("small")
def test_a_good_case_passes_every_check_and_nothing_is_written(records_dir, tmp_path, capsys):
    before = contents(records_dir)
    run_dir = tmp_path / "run"
    arguments = (f"--records_dir={records_dir}", f"--run_dir={run_dir}", "--optimizer=adamw")
    code, findings = call(capsys, *arguments, "--loss=ce")
    assert code == 0, findings
    reading_may_be_slower = {"speed"}  # than steps of crops so small
    assert set(findings) - set(levels(findings, "ok")) <= reading_may_be_slower
    assert not run_dir.exists()
    assert contents(records_dir) == before
    assert "6 samples to train on" in findings["records"][1]
    assert "3 classes" in findings["ids"][1]
    assert "mobilenet_v2, 0.00 M trained parameters; 2 crops on 1 device" in findings["network"][1]
    assert findings["step"][1].startswith("loss 1.")  # ln 3, without any training
    assert "all gradients finite" in findings["step"][1]
    assert "for 4 steps" in findings["speed"][1]
    assert findings["largest batch"][1].startswith("2 crops fit")


@pytest.mark.usefixtures("small")
def test_a_run_resumes_from_its_checkpoint_and_is_not_changed(
    records_dir, tmp_path, capsys, monkeypatch
):
    run_dir = tmp_path / "run"
    run = begin_run(run_dir, read_manifest(records_dir), {**TINY, "steps": 10})
    store_run(run)
    state = building.build_state(run, print, fresh=True)
    state.step.assign(7)
    checkpoints.write_checkpoint(run.checkpoints_dir, 7, state.checkpoint, {}, keep=1)
    before = contents(run_dir)
    fake_step(monkeypatch, lambda crops: (tf.constant(1.5), tf.constant(True), tf.constant(0.5)))

    folders = (f"--records_dir={records_dir}", f"--run_dir={run_dir}", "--steps=10")
    code, findings = call(capsys, *folders)
    assert code == 0
    assert "resumes from step 7 of 10" in findings["run folder"][1]
    assert findings["weights"] == ("ok", "from the checkpoint of step 7")
    assert "loss 1.5000" in findings["step"][1]
    assert "for 3 steps" in findings["speed"][1]

    code, findings = call(capsys, *folders, "--batch_size=4")
    assert code == 1
    assert levels(findings, "FAIL") == ["run folder"]
    assert levels(findings, "skip") == ["network", "disk", "step", "speed", "largest batch"]
    assert "batch_size=2 is stored, batch_size=4 is requested" in findings["run folder"][1]

    _, findings = call(capsys, *folders, "--steps=5")
    assert "steps must not be below the saved ones, 7; got 5" in findings["run folder"][1]

    (run.checkpoints_dir / "step-00000007" / "state.index").write_bytes(b"broken")
    code, findings = call(capsys, *folders)
    assert levels(findings, "FAIL") == ["network"]
    assert "step-00000007" in findings["network"][1]
    (run.checkpoints_dir / "step-00000007" / "state.index").unlink()
    assert set(contents(run_dir)) < set(before)  # and nothing new


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("arguments", "failing", "message", "skipped"),
    [
        (["--records_dir=TMP/none"], "records", "it has no manifest.json", ["ids", "batch"]),
        (["--label_set=all_66"], "ids", "the 66 labels of Vistas v1.2", ["batch"]),
        (["--eval_split=other"], "records", "training, validation; got other", ["ids", "batch"]),
        (["--encoder_weights=TMP/no.h5"], "weights", "no.h5", []),
        (["--init_from=TMP/no/model.ckpt"], "weights", "no/model.ckpt: init_from must be", []),
        (["--run_dir=TMP/file/run"], "run folder", "file is not", []),
        (["--run_dir=TMP/full"], "run folder", "a new run's folder must be empty", []),
        (
            ["--input_memory_mb=1", "--crop_height=999"],
            "batch",
            "input_memory_mb must be at least",
            [],
        ),
    ],
)
def test_a_failure_is_one_line_and_other_checks_still_run(
    arguments, failing, message, skipped, records_dir, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    arguments = [a.replace("TMP", str(tmp_path)) for a in arguments]
    before = contents(tmp_path)
    code, findings = call(capsys, f"--records_dir={records_dir}", *arguments)
    assert code == 1
    assert levels(findings, "FAIL") == [failing]
    assert message in findings[failing][1]
    assert levels(findings, "skip") == skipped
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("cheap")
def test_bad_flags_skip_the_checks_that_need_them(records_dir, capsys):
    code, findings = call(capsys, f"--records_dir={records_dir}", "--batch_size=0")
    assert code == 1
    assert findings["flags"] == ("FAIL", "batch_size must be positive; got 0")
    assert levels(findings, "ok") == ["versions", "GPU"]
    assert findings["memory"] == ("skip", "needs flags")


@pytest.mark.usefixtures("cheap")
def test_a_package_that_cannot_be_imported_is_reported_first(records_dir, capsys, monkeypatch):
    def refuse(name):
        raise ImportError("tensorflow must be 2.21 or newer")

    monkeypatch.setattr(environment.importlib, "import_module", refuse)
    code, findings = call(capsys, f"--records_dir={records_dir}")
    assert code == 1
    assert findings["versions"][0] == "FAIL"
    assert findings["versions"][1].startswith("tensorflow must be 2.21 or newer. Remedy: ")
    assert levels(findings, "ok") == ["flags", "records"]
    assert findings["GPU"] == ("skip", "needs versions")


@pytest.mark.usefixtures("cheap")
def test_a_shard_that_is_missing_is_named(records_dir, tmp_path, capsys):
    shutil.copytree(records_dir, tmp_path / "records")
    shard = next((tmp_path / "records").glob("training-*.tfrecord"))
    shard.unlink()
    code, findings = call(capsys, f"--records_dir={tmp_path / 'records'}")
    assert code == 1
    assert findings["records"][0] == "FAIL"
    assert str(shard) in findings["records"][1]


@pytest.mark.usefixtures("cheap")
def test_an_id_that_is_not_in_the_class_table_is_named(records_dir, tmp_path, capsys):
    shutil.copytree(records_dir, tmp_path / "records")
    manifest = read_manifest(tmp_path / "records")
    write_manifest(replace(manifest, classes=manifest.classes[:3]))
    _, findings = call(capsys, f"--records_dir={tmp_path / 'records'}")
    assert findings["ids"][0] == "FAIL"
    assert "training-" in findings["ids"][1]
    assert "ids must be in the class table; got [3]" in findings["ids"][1]


@pytest.mark.usefixtures("cheap")
def test_a_batch_without_labelled_pixels_is_a_warning(records_dir, tmp_path, capsys):
    groups = [{"name": name, "color": [1, 2, 3], "sources": []} for name in ("one", "other")]
    (tmp_path / "set.json").write_text(json.dumps({"classes": groups}))
    arguments = (f"--records_dir={records_dir}", f"--label_set={tmp_path / 'set.json'}")
    code, findings = call(capsys, *arguments)
    assert code == 0
    assert levels(findings, "WARN") == ["batch"]
    keys = first_keys(records_dir)
    assert ", ".join(keys) in findings["batch"][1]


@pytest.mark.usefixtures("small")
def test_a_batch_that_does_not_fit_is_halved_until_it_does(capsys, monkeypatch):
    def answer(crops):
        if crops > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return tf.constant(1.0), tf.constant(True), tf.constant(0.5)

    fake_step(monkeypatch, answer)
    code, findings = call(capsys, "--batch_size=8")
    assert code == 1
    assert levels(findings, "FAIL") == ["largest batch"]
    assert "batch_size=8 does not fit" in findings["largest batch"][1]
    assert "2 fit" in findings["largest batch"][1]
    assert levels(findings, "skip") == ["records", "ids", "batch"]
    assert "a synthetic batch" in findings["step"][1]


@pytest.mark.usefixtures("small")
def test_a_loss_that_is_not_finite_names_the_samples(records_dir, capsys, monkeypatch):
    nan = tf.constant(np.nan)
    fake_step(monkeypatch, lambda crops: (nan, tf.constant(False), nan))
    code, findings = call(capsys, f"--records_dir={records_dir}")
    assert code == 1
    assert levels(findings, "FAIL") == ["step"]
    assert ", ".join(first_keys(records_dir)) in findings["step"][1]
    assert levels(findings, "skip") == ["speed", "largest batch"]


def make_case(*arguments, **known):
    values = doctor.define_flags()
    values(["doctor", *arguments])
    case = doctor.make_case(values)
    for name, value in known.items():
        setattr(case, name, value)
    return case


GPU = Gpu("GPU", (7, 5))


def make_trial(config, replicas=1, values=0):
    kernel = SimpleNamespace(shape=(values,))
    state = SimpleNamespace(model=SimpleNamespace(variables=[kernel]))
    return Trial(state, config, SimpleNamespace(replicas=replicas))


def test_the_largest_batch_by_hand(monkeypatch):
    # 4 crops take 3.1 GB above 1 GB, of which 0.1 GB are gradients: 0.75 GB each.
    monkeypatch.setattr(
        machine, "allocated_bytes", lambda which: {"current": 1e9, "peak": 4.1e9}[which]
    )
    monkeypatch.setattr(machine, "available_bytes", lambda: 7.7e9 + 2**30)
    monkeypatch.setattr(machine, "reset_peak", lambda: None)
    config = TrainConfig(batch_size=4, input_memory_mb=1024)

    def examine(replicas):
        trial = make_trial(config, replicas, values=25_000_000)
        trial._step = lambda: (tf.constant(1.0), tf.constant(True))
        trial.time_steps()
        return steps.check_largest_batch(make_case(config=config, trial=trial))

    assert examine(1) == Finding("ok", "4 crops fit; the limit is about 10; a crop takes 750.0 MB")
    # Two GPUs of 11 GB take two crops each: 1.5 GB a crop.
    monkeypatch.setattr(machine, "gpus", lambda: [GPU, GPU])
    monkeypatch.setattr(machine, "gpu_limit_bytes", lambda: 11e9)
    assert examine(2) == Finding("ok", "4 crops fit; the limit is about 13; a crop takes 1.5 GB")
    monkeypatch.setattr(machine, "gpu_limit_bytes", lambda: 0)
    assert "unknown" in examine(2).text


def test_each_device_gets_its_own_crops():
    def distribute(value_of):
        return [value_of(SimpleNamespace(replica_id_in_sync_group=i)) for i in range(3)]

    strategy = SimpleNamespace(experimental_distribute_values_from_function=distribute)
    trial = Trial(None, TrainConfig(), SimpleNamespace(replicas=3, strategy=strategy))
    shares = trial.on_devices(np.arange(6))
    assert [share.numpy().tolist() for share in shares] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("gpus", "input_secs", "level", "time_left"),
    [
        ([], 1, "ok", "3h00m"),
        ([GPU], 1, "ok", "2h00m"),
        ([GPU], 3, "WARN", "3h00m"),
        ([], 0, "ok", "2h00m"),
    ],
)
def test_the_hours_to_finish_by_hand(gpus, input_secs, level, time_left, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(machine, "gpus", lambda: gpus)
    monkeypatch.setattr(machine, "reset_peak", lambda: None)
    monkeypatch.setattr(machine, "allocated_bytes", lambda which: 1e9)
    now = SimpleNamespace(perf_counter=lambda: next(clock) * 10 / 6)
    monkeypatch.setattr(trying, "time", now)  # read 7 times: 6 intervals, 10 s for 5 steps
    config = TrainConfig(batch_size=4, steps=3700)
    trial = make_trial(config)
    trial._step = lambda: (tf.constant(1.0), tf.constant(True))
    case = make_case(train=config, saved=[100], input_secs=input_secs, trial=trial)
    finding = steps.check_speed(case)
    assert finding.level == level
    assert "0.50 steps/s, 2.0 images/s (5 steps)" in finding.text
    assert f"{time_left} for 3600 steps" in finding.text


def test_a_hidden_or_busy_gpu_is_a_warning(monkeypatch):
    report = DriverReport("550.1", used_mb=9000, total_mb=80000)
    monkeypatch.setattr(machine, "driver_reports", lambda: [report])
    hidden = environment.check_gpu(make_case())
    assert (hidden.level, "TensorFlow cannot see" in hidden.text) == ("WARN", True)
    monkeypatch.setattr(machine, "gpus", lambda: [GPU])
    busy = environment.check_gpu(make_case())
    assert (busy.level, "9000 of 80000 MB" in busy.text) == ("WARN", True)
    monkeypatch.setattr(machine, "driver_reports", lambda: [replace(report, used_mb=900)])
    assert environment.check_gpu(make_case()).level == "ok"


@pytest.mark.parametrize(
    ("gpus", "precision", "level"),
    [
        ([], "auto", "ok"),
        ([], "mixed_bfloat16", "WARN"),
        ([GPU], "mixed_float16", "ok"),
        ([GPU], "mixed_bfloat16", "WARN"),
        ([GPU], "float32", "ok"),
    ],
)
def test_a_precision_without_hardware_support_is_a_warning(gpus, precision, level, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: gpus)
    case = make_case(train=TrainConfig(precision=precision))
    assert options.check_precision(case).level == level
    assert case.train.precision == ("float32" if precision == "auto" else precision)


def test_too_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 5e9)
    small = TrainConfig(batch_size=1, crop_height=100, crop_width=100)  # 2 + 2.1 + 0.04 GB
    assert environment.check_memory(make_case(train=small)).level == "ok"
    finding = environment.check_memory(
        make_case(train=replace(small, batch_size=25))
    )  # 1 GB for it
    assert (finding.level, "about 5.1 GB" in finding.text) == ("WARN", True)


def test_cached_weights_are_found_and_none_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    case = make_case(model=ModelConfig(encoder="resnet50"))
    finding = options.check_weights(case)
    assert finding.level == "WARN"
    assert "https://" in finding.text
    assert not case.weights_at_hand
    assert not (tmp_path / "keras").exists()
    path = tmp_path / "keras" / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    path.parent.mkdir(parents=True)
    path.touch()
    assert options.check_weights(case) == Finding("ok", str(path))
    assert case.weights_at_hand


def test_the_network_matches_the_options_and_its_checkpoints_must_fit_on_the_disk(
    tmp_path, monkeypatch
):
    flags = [*FLAGS, "--optimizer=adamw", "--keep_checkpoints=2", f"--run_dir={tmp_path / 'run'}"]
    case = make_case(*flags)
    options.check_flags(case)
    finding = steps.check_network(case)
    state = case.trial._state
    model = state.model
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert f"mobilenet_v2, {trained / 1e6:.2f} M" in finding.text
    # An optimizer state and a weights.npz in each of 2 checkpoints, the best one and the next.
    weights = sum(np.array(v).nbytes for v in model.variables)
    optimizer = sum(np.array(v).nbytes for v in state.optimizer.variables)
    needed = 4 * (2 * weights + optimizer)

    def room(share):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: SimpleNamespace(free=int(share * needed))
        )
        return environment.check_disk(case)

    assert room(1.1).level == "ok"
    assert (room(0.9).level, str(tmp_path) in room(0.9).text) == ("FAIL", True)


def test_all_flags_of_training_are_accepted():
    assert set(train_main.define_flags()) <= set(doctor.define_flags())


def test_flag_files_of_training_are_accepted_unchanged():
    paths = sorted((ROOT / "experiments").glob("*.flags"))
    assert paths
    for path in paths:
        case = make_case(f"--flagfile={path}")
        assert options.check_flags(case).level == "ok"
        assert "steps" in case.options


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"PYTHONPATH": "TMP"}, "tensorflow must be 2.21 or newer, or 2.15.1 with mapseg[addons]"),
        ({"KERAS_BACKEND": "jax"}, "KERAS_BACKEND must be tensorflow; got jax"),
        ({"TF_USE_LEGACY_KERAS": "1"}, "TF_USE_LEGACY_KERAS must not be set"),
    ],
)
def test_another_tensorflow_or_keras_is_one_line(setting, message, tmp_path):
    about = tmp_path / "tensorflow-2.18.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: tensorflow\nVersion: 2.18.0\n")
    changed = {name: value.replace("TMP", str(tmp_path)) for name, value in setting.items()}
    command = [sys.executable, "-m", "mapseg.doctor"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | changed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert message in line


@pytest.mark.usefixtures("small")
def test_without_run_dir_the_current_folder_is_not_taken_for_a_run(run_dir, capsys, monkeypatch):
    monkeypatch.chdir(run_dir)  # another network's checkpoints lie here
    monkeypatch.setattr(doctor, "CHECKS", doctor.CHECKS[:-4])  # the small network has too few ids
    _, findings = call(capsys)
    assert findings["network"][0] == "ok"


def test_a_package_that_is_missing_is_a_finding():
    script = """
import sys
sys.modules["h5py"] = sys.modules["cv2"] = None
from mapseg import doctor
sys.exit(doctor.main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "FAIL  versions: import of cv2 halted" in done.stdout
