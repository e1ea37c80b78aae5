"""Checks of the options: their values, the run folder, precision, initial weights."""

from dataclasses import replace

from mapseg import machine
from mapseg.checks.case import OK, WARN, Case, Finding, writable_folder
from mapseg.config import ModelConfig, TrainConfig, split_options
from mapseg.runs.checkpoints import saved_steps
from mapseg.training.prepare import resolve_precision, resume_run

_CAPABILITY = {"mixed_float16": (7, 0), "mixed_bfloat16": (8, 0)}  # of GPUs with hardware support


def check_flags(case: Case) -> Finding:
    """Builds the configs, which check their values."""
    model, train = split_options(case.options)
    case.model, case.train = ModelConfig(**model), TrainConfig(**train)
    return Finding(OK, f"{len(case.options)} training options given")


def check_run_dir(case: Case) -> Finding:
    """Checks whether the run folder is new, or can be resumed with these options."""
    run_dir = case.run_dir
    if run_dir is None:
        return Finding(OK, "no --run_dir given; a new run is assumed")
    writable_folder(run_dir, "another --run_dir")
    case.stored = resume_run(run_dir, case.options)
    if case.stored is None:
        return Finding(OK, f"{run_dir} will hold a new run")
    case.model, case.train = case.stored.model, case.stored.train
    case.saved = saved_steps(run_dir / "checkpoints")
    return Finding(OK, f"{run_dir} resumes from step {case.start_step} of {case.train.steps}")


def check_precision(case: Case) -> Finding:
    """Resolves the precision, and checks that the devices support it in hardware."""
    requested, gpus = case.train.precision, machine.gpus()
    precision, device = resolve_precision(requested), "GPU" if gpus else "CPU"
    case.train = replace(case.train, precision=precision)
    needed = _CAPABILITY.get(precision, (0, 0))
    if precision in _CAPABILITY and not (gpus and all(gpu.capability >= needed for gpu in gpus)):
        remedy = "Remedy: --precision=auto, for a new run"
        return Finding(WARN, f"{precision} is slow on this {device}. {remedy}")
    lacks = " without fast bfloat16" if precision == "float32" else ""
    reason = f"on a {device}{lacks}" if requested == "auto" else "as requested"
    return Finding(OK, f"{precision}, {reason}")


def check_weights(case: Case) -> Finding:
    """Looks for the weights that the run starts from, without downloading any."""
    from mapseg.model import pretrained  # here: it needs packages that may be missing

    if case.stored is not None:
        case.weights_at_hand = True
        return Finding(OK, f"from the checkpoint of step {case.start_step}")
    source, model = case.train.init_from, case.model
    if source:
        pretrained.find_initial(source)
    if source and model.encoder_weights == "auto":
        model = replace(model, encoder_weights="none")
    if pretrained.resolve_encoder_weights(model) == "imagenet":
        path, url = pretrained.imagenet_weights(model.encoder)
        if not path.is_file():
            writable_folder(path.parent, f"put {url} there, or use --encoder_weights=none")
            return Finding(
                WARN,
                f"not at {path}: training will first download them from {url}. Remedy: without a "
                "network, put the file there, or use --encoder_weights=none",
            )
    sources = [source, str(pretrained.find_weights(model) or "")]
    case.weights_at_hand = True
    return Finding(OK, " and ".join(filter(None, sources)) or "random, as requested")
