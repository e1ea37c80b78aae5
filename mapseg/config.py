"""All options: default, meaning, allowed values, and whether a run may change them.

`cli.py` turns the fields into flags, `runs/folder.py` stores them in the run folder, and
`docs/write_options.py` documents them. An *identity* field defines the run (its model, its sample
order): an existing run folder rejects another value. All other fields may change between calls.
"""

# Long: mostly a table.
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
OUTPUTS = ("ids", "overlay", "panel", "page", "video")

# Removed options that never changed a result: ignored where an old run has stored them.
_REMOVED = ("plot_steps", "steps_per_call")
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
    """Checks all fields when a config is created."""

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
    """Options of the network."""

    encoder: str = _option("resnet50", "backbone of the network", choices=ENCODERS, identity=True)
    encoder_weights: str = _option(
        "auto",
        "initial weights of the encoder: imagenet, none (random) or a weights file; auto uses "
        "imagenet if the encoder has such weights, and otherwise reports that it has none",
        check=(bool, "imagenet, none, auto or a path"),
        identity=True,
    )
    output_stride: int = _option(
        16,
        "stride of the encoder's last feature map in input pixels: 8, 16 or 32",
        check=(lambda v: v in (8, 16, 32), "8, 16 or 32"),
        identity=True,
    )
    decoder_channels: int = _option(
        256, "channels of the ASPP module and the decoder", check=_POSITIVE, identity=True
    )
    dropout: float = _option(0.1, "dropout rate before the logits", check=_SHARE, identity=True)
    batch_norm_momentum: float = _option(
        0.99, "momentum of batch norm's moving averages", check=_SHARE, identity=True
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
    """Options of training."""

    label_set: str = _option(
        "all",
        "classes to train: all (the evaluated ones), all_66, lane_marking, or a .json file that "
        "groups classes",
        identity=True,
    )
    train_split: str = _option("training", "split to train on", identity=True)
    eval_split: str = _option("validation", "split to evaluate on")
    steps: int = _option(
        100_000, "last training step; raise it to continue a finished run", check=_POSITIVE
    )
    schedule_steps: int = _option(
        0,
        "length of the learning rate schedule; 0 uses the --steps that the run started with",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    batch_size: int = _option(
        16, "crops per step, over all devices", check=_POSITIVE, identity=True
    )
    crop_height: int = _option(513, "crop height in pixels", check=_POSITIVE, identity=True)
    crop_width: int = _option(513, "crop width in pixels", check=_POSITIVE, identity=True)
    min_scale: float = _option(
        0.5, "smallest scale of random resizing", check=_POSITIVE, identity=True
    )
    max_scale: float = _option(
        2.0, "largest scale of random resizing", check=_POSITIVE, identity=True
    )
    scale_step: float = _option(
        0.25,
        "step between the random scales; 0 draws from the continuous range",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    flip: bool = _option(True, "mirror half of the crops horizontally", identity=True)
    color_jitter: float = _option(
        0.25,
        "strength of random changes of brightness, contrast and saturation; 0 disables it",
        check=_SHARE,
        identity=True,
    )
    class_balance: float = _option(
        0.0,
        "fraction of the crops, 0 to 1, placed around a pixel of a uniformly sampled class",
        check=(lambda v: 0 <= v <= 1, "0 to 1"),
        identity=True,
    )
    crops_per_read: int = _option(
        1,
        "crops of a batch taken from the same record: more means less reading, but less varied "
        "batches",
        check=_POSITIVE,
        identity=True,
    )
    input_memory_mb: int = _option(
        2048, "limit on the host memory of the input pipeline, in MB", check=_POSITIVE
    )
    loss: str = _option(
        "ce+lovasz",
        "ce (cross entropy), lovasz (Lovasz-softmax), ohem (cross entropy of the hardest pixels), "
        "focal, or a sum such as ce+lovasz",
        check=(
            lambda v: _are_distinct(v.split("+"), LOSSES),
            f"of {', '.join(LOSSES)}, joined by +",
        ),
        identity=True,
    )
    class_weights: bool = _option(
        False, "weight pixels in ce, ohem and focal by the rarity of their class", identity=True
    )
    label_smoothing: float = _option(
        0.0,
        "label smoothing in ce and ohem: fraction of the target spread over all classes",
        check=_SHARE,
        identity=True,
    )
    ohem_share: float = _option(
        0.25,
        "fraction of the labelled pixels that ohem keeps (the hardest); above 0, at most 1",
        check=(lambda v: 0 < v <= 1, "above 0 and at most 1"),
        identity=True,
    )
    optimizer: str = _option(
        "sgd",
        "sgd (momentum 0.9), adamw, or with mapseg[addons] lookahead_radam, novograd",
        choices=("sgd", "adamw", *ADDON_OPTIMIZERS),
        identity=True,
    )
    learning_rate: float = _option(0.01, "peak learning rate", check=_POSITIVE, identity=True)
    end_learning_rate: float = _option(
        0.0,
        "learning rate at the end of the schedule and after it",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    schedule: str = _option(
        "poly", "shape of the learning rate schedule", choices=("poly", "cosine"), identity=True
    )
    poly_power: float = _option(
        0.9, "exponent of the poly schedule; 1 is linear", check=_POSITIVE, identity=True
    )
    warmup_steps: int = _option(
        0, "steps of linear learning rate warm-up", check=_NOT_NEGATIVE, identity=True
    )
    weight_decay: float = _option(
        1e-4,
        "weight decay of kernels; batch norm parameters and biases have none",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    clip_norm: float = _option(
        0.0,
        "clip the global gradient norm to this value; 0 disables it",
        check=_NOT_NEGATIVE,
        identity=True,
    )
    batch_norm: str = _option(
        "train",
        "train the batch norms, or freeze their parameters and statistics",
        choices=("train", "frozen"),
        identity=True,
    )
    precision: str = _option(
        "auto",
        "auto is mixed_bfloat16 on a GPU that supports it, else float32",
        choices=PRECISIONS,
        identity=True,
    )
    seed: int = _option(
        1,
        "random seed of initial weights, sample order and augmentation",
        check=_SEED,
        identity=True,
    )
    init_from: str = _option(
        "",
        "initialize the network from a run folder, a weights file of mapseg or a TF DeepLab "
        "checkpoint; weights that do not match are skipped and listed",
        identity=True,
    )
    checkpoint_steps: int = _option(
        1000, "save a checkpoint every N steps; 0 disables it", check=_NOT_NEGATIVE
    )
    checkpoint_secs: int = _option(
        600, "save a checkpoint every N seconds; 0 disables it", check=_NOT_NEGATIVE
    )
    keep_checkpoints: int = _option(
        3, "number of recent checkpoints to keep; the best one is kept as well", check=_POSITIVE
    )
    eval_steps: int = _option(
        5000,
        "evaluate every N steps and at the end; 0 evaluates only at the end",
        check=_NOT_NEGATIVE,
    )
    eval_samples: int = _option(
        0, "evaluate on the first N samples during training; 0 is all", check=_NOT_NEGATIVE
    )
    early_stopping: int = _option(
        0,
        "end training after N evaluations in a row without a better mean IoU; 0 disables it",
        check=_NOT_NEGATIVE,
    )
    eval_panels: int = _option(
        8,
        "number of panels (image, prediction, ground truth) that an evaluation writes",
        check=_NOT_NEGATIVE,
    )
    on_nan: str = _option(
        "stop",
        "at a non-finite loss or gradient: stop, or skip the step; in both cases the batch and the "
        "names of its samples are written to the run folder",
        choices=("stop", "skip"),
    )
    log_steps: int = _option(20, "print and log progress every N steps", check=_POSITIVE)
    loss_smoothing: float = _option(
        0.95, "smoothing factor of the plotted loss (exponential moving average)", check=_SHARE
    )
    strategy: str = _option(
        "auto",
        "auto is multi_worker if TF_CONFIG names several workers, else all GPUs of the machine",
        choices=("auto", "one_device", "mirrored", "multi_worker"),
    )
    sync_batch_norm: bool = _option(
        False, "compute batch norm statistics over the crops of all devices", identity=True
    )
    peer_timeout_secs: int = _option(
        600,
        "how long, in seconds, a worker waits at the start for the other workers",
        check=_POSITIVE,
    )
    accumulate_steps: int = _option(
        1,
        "accumulate the gradient over this many parts of the batch, for less memory; batch norm, "
        "lovasz and ohem work within one part",
        check=_POSITIVE,
    )
    recompute: bool = _option(
        False,
        "recompute the encoder's activations in the backward pass (gradient checkpointing): less "
        "memory, more time",
    )
    xla: str = _option(
        "auto",
        "compile the training step with XLA, which may take minutes; auto is off",
        choices=("auto", "on", "off"),
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
        if self.early_stopping and not self.eval_steps:
            raise ValueError(
                f"early_stopping must be 0 with eval_steps=0; got {self.early_stopping}. Remedy: "
                "--eval_steps=N above 0, or --early_stopping=0"
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
    """Options of prediction with a trained network, on images of any size."""

    scale: str = _option(
        "auto",
        "resize the input by this factor; auto makes its long side that of the training images",
        check=(lambda v: v == "auto" or _is_positive(v), "auto or a positive number"),
    )
    scales: str = _option(
        "1",
        "average the class probabilities over these multiples of scale, e.g. 0.75,1,1.25; each "
        "takes as long as the largest",
        check=(
            lambda v: all(map(_is_positive, v.split(","))),
            "a comma-separated list of positive numbers",
        ),
    )
    flip_average: bool = _option(
        False, "average with the prediction for the horizontally flipped image"
    )
    tile_px: int = _option(
        1025,
        "largest image side processed at once, in pixels; larger tiles need more memory",
        check=(lambda v: v >= 65, "65 or more"),
    )

    @property
    def factors(self) -> tuple[float, ...]:
        """`scales` as numbers, ascending."""
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
    """Options of inference: input frames and outputs."""

    frames: str = _option(
        "",
        "input: a folder, a glob pattern, a .txt list of paths, or a video",
        check=(bool, "given"),
    )
    out_dir: str = _option("", "output folder", check=(bool, "given"))
    cameras: str = _option(
        "", "image folders to use under the root of KITTI, e.g. image_2,image_02; empty is all"
    )
    outputs: str = _option(
        "ids,overlay",
        f"what to write: any of {', '.join(OUTPUTS)}",
        check=(
            lambda v: set(v.split(",")) <= set(OUTPUTS),
            f"a comma-separated list of {', '.join(OUTPUTS)}",
        ),
    )
    batch_size: int = _option(
        0,
        "frames of equal size per batch; 0 is 8 on a GPU, 1 on a CPU",
        check=(lambda v: v >= 0, "0 or more"),
    )
    every: int = _option(1, "use every Nth frame of each folder or video", check=_POSITIVE)
    classes: str = _option(
        "", "draw only these classes in overlays, panels and videos; empty is all"
    )
    mapping: str = _option(
        "",
        "translate predictions to the classes of another dataset: vistas_to_cityscapes19 or a "
        ".json file; empty keeps the network's classes",
    )
    ids: str = _option(
        "train",
        "ids in ids/*.png: indices of the classes, or the label ids of their dataset",
        choices=("train", "label"),
    )


def to_json(config: Any) -> dict[str, Any]:
    """Returns a config's fields as a JSON object."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], raw: Any, origin: str) -> Config:
    """Restores a config; fields added by newer versions get their defaults.

    Raises:
      ValueError: not an object, an unknown field, or a value of the wrong type or out of range.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{origin}: options must be an object; got {raw!r:.100}. {_RESTORE}")
    raw = {name: value for name, value in raw.items() if name not in _REMOVED}
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
    """Lists the identity fields of a stored config that `asked` (name -> value) would change."""
    return [
        f"{f.name}={getattr(stored, f.name)} is stored, {f.name}={asked[f.name]} is requested"
        for f in dataclasses.fields(stored)
        if f.metadata["identity"] and f.name in asked and asked[f.name] != getattr(stored, f.name)
    ]


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits options into those of ModelConfig and those of TrainConfig.

    Raises:
      ValueError: an unknown name.
    """
    names = [{f.name for f in dataclasses.fields(kind)} for kind in (ModelConfig, TrainConfig)]
    unknown = sorted(set(options) - names[0] - names[1])
    if unknown:
        raise ValueError(
            f"options must be fields of ModelConfig or TrainConfig; got {', '.join(unknown)}"
        )
    model, train = ({k: v for k, v in options.items() if k in known} for known in names)
    return model, train
