"""Checks of the training step: network, finite gradients, speed, memory."""

from dataclasses import replace

import numpy as np

from mapseg import machine
from mapseg.checks.case import FAIL, OK, WARN, Case, Finding
from mapseg.config import TrainConfig
from mapseg.labels import LabelClass, LabelSet, make_label_set
from mapseg.progress import amount, duration
from mapseg.runs.folder import Run

_CLASSES_ASSUMED = 66  # when there are no records to count them


def check_network(case: Case) -> Finding:
    """Builds the network on the devices, with the weights of the checkpoint if there is one."""
    from mapseg.training import devices, state
    from mapseg.training.summary import trained_parameters
    from mapseg.training.trial import Trial

    run, share, count = _run_of(case), "", 1
    config = run.train
    cluster = devices.find_cluster(config)
    if cluster is not None:  # the other workers need not be running
        count = len(cluster.workers)
        local = "mirrored" if len(machine.gpus()) > 1 else "one_device"
        config = replace(config, strategy=local, batch_size=max(config.batch_size // count, 1))
        share = f"as one of {count} workers, "
    workers = devices.join(config, {}, case.progress, lambda: False)
    if workers is None:
        raise ValueError("devices must be joined without waiting")
    devices.check_batch_norm(run.train, workers.replicas * count)
    built = state.open_state(
        replace(run, train=config),
        workers.strategy,
        lambda _: None,
        resumed=case.stored is not None,
    )
    case.config, case.trial = config, Trial(built, config, workers)
    random = "" if case.weights_at_hand else ", random weights for these checks"
    replicas = workers.replicas
    return Finding(
        OK,
        f"{run.model.encoder}, {trained_parameters(built) / 1e6:.2f} M trained parameters{random}; "
        f"{share}{config.batch_size} crops on {replicas} device{'s' * (replicas > 1)}",
    )


def _run_of(case: Case) -> Run:
    """Returns the run to check; without records it has as many classes as Vistas."""
    if case.stored is not None:
        return case.stored
    count = 2 if case.train.label_set == "lane_marking" else _CLASSES_ASSUMED
    assumed = [LabelClass(i, str(i), (i, i, i)) for i in range(count)]
    labels = case.labels or make_label_set(assumed, "all")
    model = case.model
    train = replace(case.train, schedule_steps=case.train.schedule_steps or case.train.steps)
    if not case.weights_at_hand:
        model, train = replace(model, encoder_weights="none"), replace(train, init_from="")
    return Run(case.goal, model, train, labels, max(train.crop_size), (), "")


def check_step(case: Case) -> Finding:
    """Runs a training step; on OOM, retries with half the crops."""
    run = _run_of(case)
    batch = case.batch or _synthetic_batch(run.label_set, case.config)
    pixels = case.class_pixels
    if pixels is None:  # no records: all class weights are one
        pixels = np.ones(len(run.label_set.classes))
    first = case.trial.take_first_step(batch, pixels, case.progress)
    if not first.finite:
        return Finding(
            FAIL,
            f"the loss, {first.loss:.4g}, or a gradient is not finite for {case.samples}. Remedy: "
            "look at these samples; try other initial weights, or --precision=float32",
        )
    source = "" if case.input_secs else f"{case.samples}, "
    text = f"{source}loss {first.loss:.4f}, all gradients finite; took {first.secs:.1f} s"
    return Finding(OK, text)


def _synthetic_batch(labels: LabelSet, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = (config.batch_size, *config.crop_size)
    label = rng.integers(0, len(labels.classes), size, np.uint8)
    return rng.integers(0, 256, (*size, 3), np.uint8), label


def check_speed(case: Case) -> Finding:
    """Times steps, and estimates how long the rest of training will take."""
    secs, count = case.trial.time_steps()
    crops = case.trial.crops
    text = f"{1 / secs:.2f} steps/s, {crops / secs:.1f} images/s ({count} steps)"
    # A GPU trains while the cores read; on a CPU the two share the cores.
    input_secs = case.input_secs * crops / case.train.batch_size
    total_secs = max(secs, input_secs) if machine.gpus() else secs + input_secs
    left = case.train.steps - case.start_step
    time_left = f"{duration(left * total_secs)} for {left} steps, excluding evaluations"
    if not case.input_secs:
        return Finding(OK, f"{text}; {time_left}, if the input pipeline keeps up")
    if input_secs > secs:
        remedy = "Remedy: --crops_per_read, more cores, or records made with --max_side"
        return Finding(WARN, f"{text}; the input pipeline is slower: {time_left}. {remedy}")
    return Finding(OK, f"{text}; the input pipeline is faster; {time_left}")


def check_largest_batch(case: Case) -> Finding:
    """Estimates the largest batch that fits, from the memory that the steps used."""
    largest, crop_bytes = case.trial.largest_batch()
    limit = "the limit is unknown"
    if largest:
        limit = f"the limit is about {largest}; a crop takes {amount(crop_bytes)}"
    requested, fitting = case.config.batch_size, case.trial.crops
    if fitting < requested:
        return Finding(
            FAIL,
            f"batch_size={requested} does not fit in the device's memory, {fitting} fit; {limit}. "
            "Remedy: a smaller --batch_size or crop, --accumulate_steps, --recompute",
        )
    return Finding(OK, f"{requested} crops fit; {limit}")
