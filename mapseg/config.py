"""Every option once: its default, what it means, what it may be, and whether it may change.

`cli.py` turns the fields into flags; `runs/folder.py` stores them in the run folder. A field is
*identity* when another value would make another run of it (another model, another order of
samples): a run folder refuses such a value. All others may change from one call to the next.
"""

# Long: a table of all options more than code.
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mapseg.stored_json import TYPE_NAMES, is_of_type

ENCODERS = (
    "xception65",
    "resnet50",
    "mobilenet_v2",
    "efficientnet_lite0",
    "efficientnet_lite2",
    "ddrnet23_slim",
)
PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")
ADDON_OPTIMIZERS = ("lookahead_radam", "novograd")
LOSSES = ("ce", "ohem", "focal", "lovasz")
OUTPUTS = ("ids", "overlay", "panel", "video")

_RESTORE = "Remedy: put the value back that training wrote"

Check = Callable[[Any], bool]
Config = TypeVar("Config", bound="_Checked")


def _option(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    check: tuple[Check, str] | None = None,
    identity: bool = False,
) -> Any:
    metadata = {"help": help_text, "choices": choices, "check": check, "identity": identity}
    return field(default=default, metadata=metadata)


_POSITIVE: tuple[Check, str] = (lambda v: 0 < v < math.inf, "positive")
_NOT_NEGATIVE: tuple[Check, str] = (lambda v: 0 <= v < math.inf, "zero or more")
_SEED: tuple[Check, str] = (lambda v: 0 <= v < 2**31, "0 to 2147483647")
_SHARE: tuple[Check, str] = (lambda v: 0 <= v < 1, "at least 0 and below 1")


class _Checked:
    """Runs each field's own check when a config is made."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, option.name)
            choices, check = option.metadata["choices"], option.metadata["check"]
            if choices and value not in choices:
                raise ValueError(f"{option.name} must be one of {', '.join(choices)}; got {value}")
            if check is not None and not check[0](value):
                raise ValueError(f"{option.name} must be {check[1]}; got {value}")


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """What the network is."""

    encoder: str = _option("resnet50", "backbone", choices=ENCODERS, identity=True)
    encoder_weights: str = _option(
        "auto",
        "what the encoder starts from: imagenet, none (random), or a weights file; auto is "
        "imagenet where there are such weights, and says so where there are none",
        check=(bool, "imagenet, none, auto or a path"),
        identity=True,
    )
    output_stride: int = _option(
        16,
        "input pixels per step of the encoder's last features: 8, 16 or 32",
        check=(lambda v: v in (8, 16, 32), "8, 16 or 32"),
        identity=True,
    )
    decoder_channels: int = _option(
        256, "channels of the pyramid and the decoder", check=_POSITIVE, identity=True
    )
    dropout: float = _option(0.1, "dropout before the logits", check=_SHARE, identity=True)
    batch_norm_momentum: float = _option(
        0.99, "momentum of the moving statistics of batch norm", check=_SHARE, identity=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder == "ddrnet23_slim" and self.output_stride != 8:
            raise ValueError(
                f"output_stride must be 8 for encoder=ddrnet23_slim; got {self.output_stride}. "
                "Remedy: --output_stride=8"
            )


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """How the network is trained."""

    label_set: str = _option(
        "all", "all, all_66, lane_marking, or a .json file of groups", identity=True
    )
    train_split: str = _option("training", "split to train on", identity=True)
    eval_split: str = _option("validation", "split to evaluate on")
    steps: int = _option(
        100_000, "train until this step; raise it to go on with a finished run", check=_POSITIVE
    )
    schedule_steps: int = _option(
        0,
        "length of the learning rate's schedule; 0 is the first --steps of the run",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    batch_size: int = _option(
        16, "crops in a step, over all devices", check=_POSITIVE, identity=True
    )
    crop_height: int = _option(513, "height of a crop in pixels", check=_POSITIVE, identity=True)
    crop_width: int = _option(513, "width of a crop in pixels", check=_POSITIVE, identity=True)
    min_scale: float = _option(
        0.5, "smallest scale of the augmentation", check=_POSITIVE, identity=True
    )
    max_scale: float = _option(
        2.0, "largest scale of the augmentation", check=_POSITIVE, identity=True
    )
    scale_step: float = _option(
        0.25, "step between scales; 0 draws any scale between", check=_NOT_NEGATIVE, identity=True
    )
    flip: bool = _option(True, "mirror half of the crops", identity=True)
    color_jitter: float = _option(
        0.25,
        "strength of random brightness, contrast and saturation; 0 is off",
        check=_SHARE,
        identity=True,
    )
    class_balance: float = _option(
        0.0,
        "share of the crops, 0 to 1, that are drawn around a pixel of a uniformly chosen class",
        check=(lambda v: 0 <= v <= 1, "0 to 1"),
        identity=True,
    )
    crops_per_read: int = _option(
        1,
        "crops of a batch that are taken from one record: reads less, mixes less",
        check=_POSITIVE,
        identity=True,
    )
    input_memory_mb: int = _option(
        2048, "memory on the host that reading crops may take, in MB", check=_POSITIVE
    )
    loss: str = _option(
        "ce",
        f"one of {', '.join(LOSSES)}, or several joined by +: cross entropy, that of the hardest "
        "pixels, focal loss, Lovasz-softmax",
        check=(
            lambda v: _are_distinct(v.split("+"), LOSSES),
            f"of {', '.join(LOSSES)}, joined by +",
        ),
        identity=True,
    )
    class_weights: bool = _option(
        False, "weigh pixels in ce, ohem and focal by how rare their class is", identity=True
    )
    label_smoothing: float = _option(
        0.0,
        "share of the target in ce and ohem that goes to all classes",
        check=_SHARE,
        identity=True,
    )
    ohem_share: float = _option(
        0.25,
        "of ohem: the share of the labelled pixels, the hardest, that it takes; above 0, at most 1",
        check=(lambda v: 0 < v <= 1, "above 0 and at most 1"),
        identity=True,
    )
    optimizer: str = _option(
        "sgd",
        "sgd (momentum 0.9), adamw, or with mapseg[addons] lookahead_radam, novograd",
        choices=("sgd", "adamw", *ADDON_OPTIMIZERS),
        identity=True,
    )
    learning_rate: float = _option(0.01, "highest learning rate", check=_POSITIVE, identity=True)
    end_learning_rate: float = _option(
        0.0, "learning rate at the schedule's end and after", check=_NOT_NEGATIVE, identity=True
    )
    schedule: str = _option(
        "poly", "course of the learning rate", choices=("poly", "cosine"), identity=True
    )
    poly_power: float = _option(
        0.9, "exponent of the poly schedule", check=_POSITIVE, identity=True
    )
    warmup_steps: int = _option(
        0, "steps of linear warm-up of the learning rate", check=_NOT_NEGATIVE, identity=True
    )
    weight_decay: float = _option(
        1e-4,
        "decay of kernels; norms and biases are spared",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    clip_norm: float = _option(
        0.0,
        "largest global norm of the gradients, which are scaled down to it; 0 is off",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    batch_norm: str = _option(
        "train", "train the batch norms or keep them", choices=("train", "frozen"), identity=True
    )
    precision: str = _option(
        "auto",
        "auto is mixed_bfloat16 on a GPU that has it, else float32",
        choices=PRECISIONS,
        identity=True,
    )
    seed: int = _option(
        1, "seed of the weights, the order and the augmentation", check=_SEED, identity=True
    )
    init_from: str = _option(
        "",
        "fine-tune: a run folder, a weights file of mapseg, or a TF DeepLab checkpoint; what does "
        "not fit is left out and listed",
        identity=True,
    )
    checkpoint_steps: int = _option(1000, "save every so many steps; 0 is off", check=_NOT_NEGATIVE)
    checkpoint_secs: int = _option(600, "save every so many seconds; 0 is off", check=_NOT_NEGATIVE)
    keep_checkpoints: int = _option(3, "how many of the newest checkpoints stay", check=_POSITIVE)
    eval_steps: int = _option(
        5000, "evaluate every so many steps and at the end; 0: at the end", check=_NOT_NEGATIVE
    )
    eval_samples: int = _option(
        0, "evaluate on the first so many samples while training; 0 is all", check=_NOT_NEGATIVE
    )
    eval_panels: int = _option(
        8, "write so many pictures of image, prediction and ground truth", check=_NOT_NEGATIVE
    )
    on_nan: str = _option(
        "stop",
        "at a step whose loss or gradient is not finite: stop, or skip the step and go on; either "
        "way its batch is written to the run folder, with the names of its samples",
        choices=("stop", "skip"),
    )
    log_steps: int = _option(20, "report every so many steps", check=_POSITIVE)
    plot_steps: int = _option(500, "redraw loss.png every so many steps", check=_POSITIVE)
    loss_smoothing: float = _option(0.95, "weight of the past in the smoothed loss", check=_SHARE)
    strategy: str = _option(
        "auto",
        "auto is multi_worker where TF_CONFIG names several workers, else every GPU of the machine",
        choices=("auto", "one_device", "mirrored", "multi_worker"),
    )
    sync_batch_norm: bool = _option(
        False, "normalize over the batch of all devices, not of each", identity=True
    )
    peer_timeout_secs: int = _option(
        600, "how long multi_worker waits at its start for the other workers", check=_POSITIVE
    )
    accumulate_steps: int = _option(
        1,
        "parts of the batch that a device goes through one after the other: less memory, the same "
        "gradient; batch norm sees a part, and ohem and lovasz rank within it",
        check=_POSITIVE,
    )
    recompute: bool = _option(
        False, "compute the encoder's activations again for the gradient: less memory, more time"
    )
    steps_per_call: int = _option(
        0,
        "steps that run without coming back to Python; 0 is 10 on a GPU, 1 on a CPU",
        check=_NOT_NEGATIVE,
    )
    xla: str = _option(
        "auto", "compile the step: auto is on for a GPU", choices=("auto", "on", "off")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_scale < self.min_scale:
            raise ValueError(
                f"max_scale must be at least min_scale; got {self.max_scale} < {self.min_scale}"
            )
        for option, users in (
            ("label_smoothing", ("ce", "ohem")),
            ("class_weights", ("ce", "ohem", "focal")),
            ("ohem_share", ("ohem",)),
        ):
            changed = getattr(self, option) != getattr(TrainConfig, option)
            if changed and not set(users) & set(self.loss.split("+")):
                raise ValueError(
                    f"{option} must be used with a loss of {', '.join(users)}; got loss={self.loss}"
                )
        if self.batch_size % self.crops_per_read:
            raise ValueError(
                f"batch_size must be a multiple of crops_per_read, {self.crops_per_read}; "
                f"got {self.batch_size}"
            )

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of a crop in pixels."""
        return self.crop_height, self.crop_width


@dataclass(frozen=True)
class PredictConfig(_Checked):
    """How a trained network is run over images of any size."""

    scale: str = _option(
        "auto",
        "resize the input by this factor; auto matches its long side to the training images'",
        check=(lambda v: v == "auto" or _is_positive(v), "auto or a positive number"),
    )
    scales: str = _option(
        "1",
        "average the predictions at these multiples of scale, e.g. 0.75,1,1.25; each costs as much "
        "as the largest",
        check=(
            lambda v: all(map(_is_positive, v.split(","))),
            "a comma-separated list of positive numbers",
        ),
    )
    flip_average: bool = _option(False, "average with the prediction of the mirrored image")
    tile_px: int = _option(
        1025,
        "largest side that goes through the network at once; more needs more memory",
        check=(lambda v: v >= 65, "65 or more"),
    )

    @property
    def factors(self) -> tuple[float, ...]:
        """The numbers of `scales`, ascending."""
        return tuple(sorted(float(factor) for factor in self.scales.split(",")))


def _are_distinct(names: Sequence[str], known: Sequence[str]) -> bool:
    return len(set(names)) == len(names) and set(names) <= set(known)


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


@dataclass(frozen=True)
class InferConfig(_Checked):
    """Which frames to segment, and what to write."""

    frames: str = _option(
        "", "a folder, a glob, a .txt list of paths, or a video", check=(bool, "given")
    )
    out_dir: str = _option("", "where the results go", check=(bool, "given"))
    cameras: str = _option(
        "", "under a KITTI root, only these image folders, e.g. image_2,image_02; empty is all"
    )
    outputs: str = _option(
        "ids,overlay",
        f"what to write, of {', '.join(OUTPUTS)}",
        check=(
            lambda v: set(v.split(",")) <= set(OUTPUTS),
            f"a comma-separated list of {', '.join(OUTPUTS)}",
        ),
    )
    batch_size: int = _option(
        0,
        "frames of one size that go through the network together; 0 is 8 on a GPU, 1 on a CPU",
        check=(lambda v: v >= 0, "0 or more"),
    )
    every: int = _option(1, "take every so many frames of each folder or video", check=_POSITIVE)
    classes: str = _option("", "draw only these classes in pictures; empty is all")


def to_json(config: Any) -> dict[str, Any]:
    """Returns a config's fields as a JSON object."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], raw: Any, origin: str) -> Config:
    """Rebuilds a config; fields that a newer version added take their defaults.

    Raises:
      ValueError: no object, a field that this version does not know, or a value that is of another
        type or refused.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{origin}: options must be an object; got {raw!r:.100}. {_RESTORE}")
    known = {f.name: type(f.default) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise ValueError(
            f"{origin}: options must be ones of this version of mapseg; unknown: {unknown}. "
            "Remedy: use the version that wrote it"
        )
    for name, value in raw.items():
        if not is_of_type(value, known[name]):
            must = TYPE_NAMES[known[name]]
            raise ValueError(f"{origin}: {name} must be {must}; got {value!r:.100}. {_RESTORE}")
    try:
        return kind(**raw)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}. {_RESTORE}") from error


def identity_conflicts(stored: Any, asked: dict[str, Any]) -> list[str]:
    """Lists what `asked` (field name -> value) would change in the identity of a stored config."""
    return [
        f"{f.name}={getattr(stored, f.name)} is stored, {f.name}={asked[f.name]} is asked"
        for f in dataclasses.fields(stored)
        if f.metadata["identity"] and f.name in asked and asked[f.name] != getattr(stored, f.name)
    ]


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sorts option values into those of ModelConfig and those of TrainConfig.

    Raises:
      ValueError: a name that neither has.
    """
    names = [{f.name for f in dataclasses.fields(kind)} for kind in (ModelConfig, TrainConfig)]
    unknown = sorted(set(options) - names[0] - names[1])
    if unknown:
        raise ValueError(
            f"options must be fields of ModelConfig or TrainConfig; got {', '.join(unknown)}"
        )
    model, train = ({k: v for k, v in options.items() if k in known} for known in names)
    return model, train
