"""Checks, before a run, whether training as asked will work on this machine; cheap things first.

    python -m mapseg.doctor [--records_dir=R] [--run_dir=O] [--flagfile=F] [options of training]

Prints a line for each check: ok; WARN, where training works but not as it could; FAIL, where it
will not work; skip, where what the check needs is not there. It writes into no folder and downloads
nothing. Without --records_dir the step is tried on a synthetic batch. The exit code is 1 if a check
failed.
"""

import importlib
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from mapseg import cli, machine
from mapseg.config import ModelConfig, PredictConfig, TrainConfig
from mapseg.data.manifest import read_manifest
from mapseg.labels import VOID, LabelClass, LabelSet, make_label_set
from mapseg.model import pretrained
from mapseg.progress import amount, duration
from mapseg.runs.checkpoints import saved_steps
from mapseg.runs.folder import Run
from mapseg.training.prepare import check_same_records, resolve_precision, resume_run

if TYPE_CHECKING:  # TensorFlow takes seconds to import, and may not be there
    from mapseg.data.manifest import Manifest
    from mapseg.training.trial import Trial

OK, WARN, FAIL, SKIP = "ok", "WARN", "FAIL", "skip"

_NOT_NEEDED = ("checkpoint", "export_dir", "runs", "plot_path", "compile_cache_dir")
_PACKAGES = ("tensorflow", "keras", "cv2", "PIL", "h5py", "google_crc32c", "matplotlib")
_SLOTS = {"sgd": 1, "lookahead_radam": 3}  # of the optimizer for each weight; others have 2
_PROGRAM_BYTES = 2e9  # TensorFlow itself
_CPU_STEP_BYTES_PER_PX = 4000  # of a crop; after the table in docs/benchmarks.md
_CAPABILITY = {"mixed_float16": (7, 0), "mixed_bfloat16": (8, 0)}  # GPUs that have it in hardware
_BUSY_SHARE = 0.1  # of a GPU's memory
_CLASSES_ASSUMED = 66  # where no records say how many there are
_LABELS_READ = 8
_INPUT_SECS = 3.0


@dataclass(frozen=True)
class Finding:
    """What a check found: its level, and what is or what is wrong, with the remedy."""

    level: str
    text: str


@dataclass(repr=False)
class Case:
    """What is to be trained, and what the checks found out about it for those after them."""

    values: flags.FlagValues
    progress: Callable[[str], None]
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stored: Run | None = None  # that is resumed
    weights_at_hand: bool = False
    manifest: "Manifest" = field(init=False)
    labels: LabelSet | None = None
    class_pixels: np.ndarray | None = None  # of the split, by train id
    batch: tuple[np.ndarray, np.ndarray] | None = None  # as the pipeline gives it
    samples: str = "a synthetic batch"  # what is in it
    input_secs: float = 0.0  # for a batch of the records
    start_step: int = 0
    trial: "Trial" = field(init=False)
    config: TrainConfig = field(init=False)  # of this process: its share of the batch

    @property
    def run_dir(self) -> Path:
        """The folder of the run; this one where none is given."""
        return Path(self.values.run_dir)

    @property
    def records_dir(self) -> Path:
        """The folder of the records, if one is given."""
        return Path(self.values.records_dir)


def check_versions(case: Case) -> Finding:
    """Imports what training needs."""
    case.progress("importing TensorFlow ...")
    try:
        tensorflow, keras, *_ = map(importlib.import_module, _PACKAGES)
    except ImportError as error:
        return Finding(FAIL, f"{error}. Remedy: pip install -e . in the environment of this Python")
    versions = f"TensorFlow {tensorflow.__version__}, Keras {keras.__version__}"
    return Finding(OK, f"Python {platform.python_version()}, {versions}")


def check_flags(case: Case) -> Finding:
    """Makes the configs, which check their values."""
    model, train = (cli.given(case.values, kind) for kind in (ModelConfig, TrainConfig))
    case.model, case.train = ModelConfig(**model), TrainConfig(**train)
    return Finding(OK, f"{len(model) + len(train)} options of training are given")


def check_run_dir(case: Case) -> Finding:
    """Looks whether the run folder is new, or can be resumed with these options."""
    run_dir = case.run_dir
    if not case.values.run_dir:
        return Finding(OK, "no --run_dir is given; the run is taken as a new one")
    _writable(run_dir, "another --run_dir")
    case.stored = resume_run(run_dir, cli.given(case.values, ModelConfig, TrainConfig))
    if case.stored is None:
        return Finding(OK, f"{run_dir} will be that of a new run")
    case.model, case.train = case.stored.model, case.stored.train
    case.start_step = saved_steps(run_dir / "checkpoints")[-1]
    return Finding(OK, f"{run_dir} goes on from step {case.start_step} of {case.train.steps}")


def _writable(goal: Path, remedy: str) -> Path:
    """Returns a folder, or where it is not there the nearest above it, if it can be written to."""
    goal = goal.absolute()
    folder = next(path for path in (goal, *goal.parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{goal} must be writable; {folder} is not. Remedy: {remedy}")
    return folder


def check_gpu(case: Case) -> Finding:
    """Looks for GPUs, whether TensorFlow sees them, and whether they are free."""
    seen, reports, hidden = machine.gpus(), machine.driver_reports(), machine.hidden_gpu()
    if hidden:
        return Finding(WARN, hidden)
    if not seen:
        return Finding(OK, f"none; training runs on the CPU, {machine.cores()} cores")
    text = ", ".join(gpu.name for gpu in seen)
    for report in reports:
        text += f"; driver {report.version}, {report.used_mb} of {report.total_mb} MB used"
    if any(report.used_mb > _BUSY_SHARE * report.total_mb for report in reports):
        return Finding(WARN, f"{text}: by another program. Remedy: end it (nvidia-smi names it)")
    return Finding(OK, text)


def check_memory(case: Case) -> Finding:
    """Compares the host's memory with what reading and, on a CPU, the step will take."""
    needed = _PROGRAM_BYTES + case.train.input_memory_mb * 2**20
    what = "TensorFlow and the input"
    if not machine.gpus():
        pixels = case.train.batch_size * math.prod(case.train.crop_size)
        needed += _CPU_STEP_BYTES_PER_PX * pixels
        what += " and, on a CPU, the step"
    available = machine.available_bytes()
    text = f"{amount(available)} available; {what} may take about {amount(needed)}"
    if needed > available:
        remedy = "Remedy: lower --input_memory_mb, --batch_size or the crop"
        return Finding(WARN, f"{text}: the program may be killed. {remedy}")
    return Finding(OK, text)


def check_precision(case: Case) -> Finding:
    """Says what the precision comes to, and whether the devices have its arithmetic."""
    asked, gpus = case.train.precision, machine.gpus()
    precision, device = resolve_precision(asked), "GPU" if gpus else "CPU"
    case.train = replace(case.train, precision=precision)
    least = _CAPABILITY.get(precision, (0, 0))
    if precision in _CAPABILITY and not (gpus and all(gpu.capability >= least for gpu in gpus)):
        remedy = "Remedy: --precision=auto, for a new run"
        return Finding(WARN, f"{precision} is slow on this {device}. {remedy}")
    lacks = " without fast bfloat16" if precision == "float32" else ""
    return Finding(OK, f"{precision}, " + (f"on a {device}{lacks}" if asked == "auto" else "asked"))


def check_weights(case: Case) -> Finding:
    """Looks for the weights that the run starts from, without a download."""
    if case.stored is not None:
        case.weights_at_hand = True
        return Finding(OK, f"those of step {case.start_step}")
    source, model = case.train.init_from, case.model
    if source and not (Path(source).exists() or Path(f"{source}.index").is_file()):
        raise FileNotFoundError(
            f"{source}: init_from must be a run folder, a weights.npz or the prefix of a TF "
            "DeepLab checkpoint; it is not there. Remedy: put it there, or name another"
        )
    if source and model.encoder_weights == "auto":
        model = replace(model, encoder_weights="none")
    if pretrained.resolve_encoder_weights(model) == "imagenet":
        path, url = pretrained.imagenet_weights(model.encoder)
        if not path.is_file():
            _writable(path.parent, f"put {url} there, or --encoder_weights=none")
            return Finding(
                WARN,
                f"not at {path}: training will first download them from {url}. Remedy, without a "
                "network: put the file there, or --encoder_weights=none",
            )
    found = [source, str(pretrained.find_weights(model) or "")]
    case.weights_at_hand = True
    return Finding(OK, " and ".join(filter(None, found)) or "random ones, as asked")


def check_records(case: Case) -> Finding:
    """Looks for the manifest, every shard at its size, and the splits."""
    if not case.values.records_dir:
        return Finding(SKIP, "no --records_dir is given; the step is tried on a synthetic batch")
    case.manifest = read_manifest(case.records_dir)
    split = case.manifest.split(case.train.train_split)
    if case.values.mode != "train":
        case.manifest.split(case.train.eval_split)
    if case.stored is not None:
        check_same_records(case.stored, case.manifest)
    epochs = case.train.steps * case.train.batch_size / split.samples
    return Finding(
        OK,
        f"{split.samples} samples to train on, in {len(split.shards)} shards; long side "
        f"{split.long_side_px} px; {epochs:.1f} epochs",
    )


def check_ids(case: Case) -> Finding:
    """Applies the label set, and looks in some labels for ids that the class table has not."""
    from mapseg.data.samples import parse_sample
    from mapseg.data.shards import index_split, read_record

    classes = case.manifest.classes
    stored = case.stored
    labels = stored.label_set if stored else make_label_set(classes, case.train.label_set)
    case.labels, index = labels, index_split(case.manifest, case.train.train_split)
    places = np.unique(np.linspace(0, len(index) - 1, _LABELS_READ).astype(int))
    for place in places:
        sample = parse_sample(read_record(index, int(place)))
        allowed = {c.id for c in classes} | (set() if sample.tiles else {VOID})  # as TF DeepLab
        unknown = sorted(set(np.unique(sample.whole_label).tolist()) - allowed)
        if unknown:
            raise ValueError(
                f"{sample.key}: ids must be in the class table; got {unknown}. Remedy: python -m "
                "data_prep.verify_records names all such samples; convert them again"
            )
    pixels = case.manifest.split(case.train.train_split).pixels
    case.class_pixels = labels.count(pixels, classes)
    void = sum(pixels.get(c.name, 0) for c in classes if labels.table[c.id] == VOID)
    return Finding(
        OK,
        f"{len(labels.classes)} classes of label set {labels.name}; "
        f"{void / max(sum(pixels.values()), 1):.1%} of the split's pixels are in none (VOID); "
        f"{len(places)} labels read, their ids are of the class table",
    )


def check_batch(case: Case) -> Finding:
    """Makes batches of the records for some seconds."""
    from mapseg.data.batches import CropStream

    if case.labels is None:
        raise ValueError("the label set must be known before batches are made")
    started, count = time.perf_counter(), 1
    stream = CropStream(case.manifest, case.train, case.labels)
    batches = iter(stream.batches(case.start_step))
    image, label = (pixels.numpy() for pixels in next(batches))
    first_secs = time.perf_counter() - started
    while time.perf_counter() - started < _INPUT_SECS:
        next(batches)
        count += 1
    case.input_secs = (time.perf_counter() - started) / count
    case.batch = image, label
    case.samples = ", ".join(stream.keys(case.start_step))
    void = (label == VOID).mean()
    text = (
        f"the first took {first_secs:.1f} s, in all {len(label) / case.input_secs:.1f} crops/s; "
        f"{void:.0%} of the first's pixels are VOID"
    )
    if void == 1:
        return Finding(WARN, f"{text}: nothing to learn, of {case.samples}. Remedy: --label_set")
    return Finding(OK, text)


def check_network(case: Case) -> Finding:
    """Builds the network on the devices, with the weights of the checkpoint if there is one."""
    from mapseg.training import devices, state
    from mapseg.training.summary import trained_parameters
    from mapseg.training.trial import Trial

    run, share, count = _run_of(case), "", 1
    config = run.train
    cluster = devices.find_cluster(config)
    if cluster is not None:  # the other workers need not be there
        count = len(cluster.workers)
        local = "mirrored" if len(machine.gpus()) > 1 else "one_device"
        config = replace(config, strategy=local, batch_size=max(config.batch_size // count, 1))
        share = f"as one of {count} workers, "
    workers = devices.join(config, {}, case.progress, lambda: False)
    if workers is None:
        raise ValueError("devices must be joined without waiting")
    devices.check_batch_norm(run.train, workers.replicas * count)
    built = state.open_state(replace(run, train=config), workers.strategy, lambda _: None)
    case.config, case.trial = config, Trial(built, config, workers)
    random = "" if case.weights_at_hand else ", random ones for these checks"
    return Finding(
        OK,
        f"{run.model.encoder}, {trained_parameters(built) / 1e6:.2f} M trained parameters{random}; "
        f"{share}{config.batch_size} crops on {workers.replicas} devices",
    )


def _run_of(case: Case) -> Run:
    """The run as far as it is known: without records, with as many classes as Vistas has."""
    if case.stored is not None:
        return case.stored
    count = 2 if case.train.label_set == "lane_marking" else _CLASSES_ASSUMED
    assumed = [LabelClass(i, str(i), (i, i, i)) for i in range(count)]
    labels = case.labels or make_label_set(assumed, "all")
    model = case.model
    train = replace(case.train, schedule_steps=case.train.schedule_steps or case.train.steps)
    if not case.weights_at_hand:
        model, train = replace(model, encoder_weights="none"), replace(train, init_from="")
    return Run(case.run_dir, model, train, labels, max(train.crop_size), (), "")


def check_disk(case: Case) -> Finding:
    """Compares the room where the run goes with what its checkpoints take."""
    folder = _writable(case.run_dir, "another --run_dir")
    # The state has the weights and the optimizer's slots, weights.npz the weights again. Beside
    # those that are kept lie the best one and one that is being written.
    copies = 2 + _SLOTS.get(case.train.optimizer, 2)
    count = max(case.train.keep_checkpoints + 2 - len(saved_steps(case.run_dir / "checkpoints")), 1)
    needed, free = case.trial.weight_bytes * copies * count, shutil.disk_usage(folder).free
    text = f"{amount(free)} free at {folder}; checkpoints will take about {amount(needed)}"
    if free < needed:
        return Finding(FAIL, f"{text}. Remedy: free some, or lower --keep_checkpoints")
    return Finding(OK, text)


def check_step(case: Case) -> Finding:
    """Takes a step, with half the crops again and again where memory is too little."""
    run = _run_of(case)
    batch = case.batch or _synthetic_batch(run.label_set, case.config)
    pixels = case.class_pixels
    if pixels is None:  # without records; class weights of one
        pixels = np.ones(len(run.label_set.classes))
    first = case.trial.take_first_step(batch, pixels, case.progress)
    if not first.finite:
        return Finding(
            FAIL,
            f"the loss, {first.loss:.4g}, or a gradient is not finite, of {case.samples}. Remedy: "
            "look at these samples; other initial weights, or --precision=float32",
        )
    what = "" if case.input_secs else f"{case.samples}, "
    text = f"{what}loss {first.loss:.4f}, all gradients finite; the first took {first.secs:.1f} s"
    return Finding(OK, text)


def _synthetic_batch(labels: LabelSet, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = (config.batch_size, *config.crop_size)
    label = rng.integers(0, len(labels.classes), size, np.uint8)
    return rng.integers(0, 256, (*size, 3), np.uint8), label


def check_speed(case: Case) -> Finding:
    """Times steps, and says how long all of them will take."""
    secs, count = case.trial.time_steps()
    crops = case.trial.crops
    text = f"{1 / secs:.2f} steps/s, {crops / secs:.1f} images/s ({count} steps)"
    # A GPU trains while the cores read; on a CPU the two share the cores.
    input_secs = case.input_secs * crops / case.train.batch_size
    both = max(secs, input_secs) if machine.gpus() else secs + input_secs
    left = case.train.steps - case.start_step
    time_left = f"{duration(left * both)} for {left} steps, evaluations not counted"
    if not case.input_secs:
        return Finding(OK, f"{text}; {time_left}, if the input keeps up")
    if input_secs > secs:
        remedy = "Remedy: --crops_per_read, more cores, or records made with --max_side"
        return Finding(WARN, f"{text}, the input is slower: {time_left}. {remedy}")
    return Finding(OK, f"{text}, the input is faster; {time_left}")


def check_largest_batch(case: Case) -> Finding:
    """Says about how many crops a batch can have, from the memory that the steps took."""
    most, crop_bytes = case.trial.largest_batch()
    about = "how many more would is not known"
    if most:
        about = f"about {most} would; a crop takes {amount(crop_bytes)}"
    asked, fitting = case.config.batch_size, case.trial.crops
    if fitting < asked:
        return Finding(
            FAIL,
            f"batch_size={asked} does not fit into the device's memory, {fitting} fit; {about}. "
            "Remedy: a smaller --batch_size or crop, --accumulate_steps, --recompute",
        )
    return Finding(OK, f"{asked} crops fit; {about}")


# In this order: name, the checks without whose success it cannot be made, the check.
CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[Case], Finding]], ...] = (
    ("versions", (), check_versions),
    ("flags", (), check_flags),
    ("run folder", ("versions", "flags"), check_run_dir),
    ("GPU", ("versions",), check_gpu),
    ("memory", ("versions", "flags"), check_memory),
    ("precision", ("versions", "flags"), check_precision),
    ("weights", ("versions", "flags"), check_weights),
    ("records", ("flags",), check_records),
    ("ids", ("versions", "records"), check_ids),
    ("batch", ("versions", "ids"), check_batch),
    ("network", ("run folder", "precision"), check_network),
    ("disk", ("network",), check_disk),
    ("step", ("network",), check_step),
    ("speed", ("step",), check_speed),
    ("largest batch", ("speed",), check_largest_batch),
)


def examine(case: Case, report: Callable[[str], None]) -> bool:
    """Makes all checks and reports each; returns whether none failed."""
    lost: dict[str, str] = {}
    for name, needs, check in CHECKS:
        lacking = [need for need in needs if need in lost]
        try:
            finding = check(case) if not lacking else Finding(SKIP, f"needs {lacking[0]}")
        except Exception as error:
            finding = Finding(FAIL, cli.one_line(error))
        if finding.level in (FAIL, SKIP):
            lost[name] = finding.level
        report(f"{finding.level:<4}  {name}: {finding.text}")
    return FAIL not in lost.values()


def define_flags() -> flags.FlagValues:
    """Defines what the program takes: all that train_main.py does, for its flag files."""
    values = flags.FlagValues()
    for name, text in (
        ("records_dir", "folder of records, made by data_prep.build_records"),
        ("run_dir", "folder of the run, new or to go on with"),
        ("mode", "as for train_main.py; with train no split to evaluate on is needed"),
        *((name, "of train_main.py; not needed here") for name in _NOT_NEEDED),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    flags.DEFINE_alias("init_checkpoint", "init_from", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Makes the checks; 1 where one failed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    case = Case(values, progress=lambda line: cli.report(f"      {line}"))
    return 0 if examine(case, cli.report) else 1


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
