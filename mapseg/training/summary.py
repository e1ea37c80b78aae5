"""Summary of a run, printed before training starts."""

import math

from mapseg import onednn
from mapseg.machine import cores, gpus, hidden_gpu
from mapseg.model.pretrained import resolve_encoder_weights
from mapseg.runs.folder import Run
from mapseg.training.devices import Workers
from mapseg.training.state import TrainState, use_xla


def describe_devices(workers: Workers) -> str:
    """Returns the devices of this process, and their number on all workers."""
    names = ", ".join(gpu.name for gpu in gpus())
    devices = names or f"CPU ({cores()} cores)"
    if workers.count > 1:
        devices += f" on this worker, {workers.replicas} devices on {workers.count} workers"
    return devices


def describe(run: Run, state: TrainState, samples: int, workers: Workers) -> list[str]:
    """Returns lines about the network, the devices and the length of a run."""
    epochs = run.train.steps * run.train.batch_size / samples
    start = run.train.init_from or resolve_encoder_weights(run.model)
    lines = [
        f"run folder {run.run_dir}",
        f"devices: {describe_devices(workers)}; precision {run.train.precision}; "
        f"XLA {'on' if use_xla(run.train, workers.strategy) else 'off'}",
        f"{run.model.encoder} from {start}, "
        f"output stride {run.model.output_stride}, "
        f"{trained_parameters(state) / 1e6:.2f} M trained parameters, "
        f"{len(run.label_set.classes)} classes ({run.label_set.name})",
        f"{samples} samples, {run.train.steps} steps of {run.train.batch_size} crops of "
        f"{run.train.crop_height}x{run.train.crop_width}: {epochs:.1f} epochs",
    ]
    if run.model.encoder_weights == "auto" and start == "none":
        lines.append(
            f"NOTE: there are no ImageNet weights for {run.model.encoder}: it starts from random "
            "weights"
        )
    warmup, end = run.train.warmup_steps, run.train.schedule_steps or run.train.steps
    if warmup >= end:
        lines.append(
            f"WARNING: warmup_steps={warmup} of a schedule of {end} steps: the learning rate never "
            "decays. Remedy: fewer --warmup_steps"
        )
    if run.train.steps > end and not run.train.end_learning_rate:
        lines.append(
            f"WARNING: the learning rate is 0 from step {end} on, where the schedule ends: later "
            f"steps train no weights. Remedy: in another --run_dir, --init_from={run.run_dir}, or "
            "--end_learning_rate above 0 from the start"
        )
    for problem in (hidden_gpu(), onednn.difference(run.onednn)):
        if problem:
            lines.append(f"WARNING: {problem}")
    return lines


def trained_parameters(state: TrainState) -> int:
    """Counts the trainable parameters."""
    return sum(math.prod(v.shape) for v in state.model.trainable_variables)
