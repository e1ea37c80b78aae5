"""Writes docs/options.md from mapseg/config.py."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from mapseg.config import InferConfig, ModelConfig, PredictConfig, TrainConfig

PATH = Path(__file__).parent / "options.md"

INTRODUCTION = """# Options

`train_main.py` and `python -m mapseg.doctor` accept the options of the network, of training and of
prediction; `infer_main.py` accepts those of prediction and inference. The Python API has the same
names as keyword arguments. Each program's `--help` also lists its other flags.

An option marked **fixed** defines the run: it is stored in the run folder, and a later command
with another value is refused. All other options may change from one command to the next.

A flag file stores a set of options, and flags that follow it on the command line override it:
`python train_main.py --flagfile=experiments/camvid_pretrained.flags ...`.

*Written by `python docs/write_options.py` from `mapseg/config.py`; a test compares the two.*
"""

# Every option is in one group; no names: all of the config.
GROUPS: tuple[tuple[str, type, str], ...] = (
    ("Network", ModelConfig, ""),
    ("Data", TrainConfig, "label_set train_split eval_split seed input_memory_mb crops_per_read"),
    (
        "Crops and augmentation",
        TrainConfig,
        "batch_size crop_height crop_width min_scale max_scale scale_step flip color_jitter "
        "class_balance",
    ),
    ("Loss", TrainConfig, "loss class_weights label_smoothing ohem_share"),
    (
        "Optimizer and schedule",
        TrainConfig,
        "steps optimizer learning_rate end_learning_rate schedule schedule_steps poly_power "
        "warmup_steps weight_decay clip_norm batch_norm init_from on_nan",
    ),
    (
        "Speed, memory and devices",
        TrainConfig,
        "precision xla accumulate_steps recompute strategy sync_batch_norm peer_timeout_secs",
    ),
    (
        "Checkpoints, evaluation and reports",
        TrainConfig,
        "checkpoint_steps checkpoint_secs keep_checkpoints eval_steps eval_samples early_stopping "
        "eval_panels log_steps loss_smoothing",
    ),
    ("Prediction (evaluation, inference, export)", PredictConfig, ""),
    ("Inference", InferConfig, ""),
)

_AIDS = (
    "points of mean IoU over `ce` in short runs "
    "([results](results.md#what-each-option-contributes))"
)

# The effect of an option, where it was measured; for accuracy with its 95 % interval.
MEASURED = {
    "loss": "`ce+lovasz` +4.7 (+1.3 to +8.1), `focal` +1.6 (-3.1 to +6.3), "
    f"`ohem` -0.8 (-5.6 to +4.0) {_AIDS}",
    "class_weights": f"+0.3 (-5.2 to +5.9) {_AIDS}; signs and bicyclists gain more",
    "label_smoothing": f"0.1: -0.6 (-7.1 to +5.9) {_AIDS}",
    "class_balance": f"0.5: +0.6 (-1.8 to +3.1) {_AIDS}",
    "color_jitter": f"0.4: -1.9 (-6.1 to +2.2) {_AIDS}",
    "clip_norm": f"1: -0.1 (-0.6 to +0.4) {_AIDS}",
    "recompute": "39 % less memory with MobileNetV2 ([benchmarks](benchmarks.md))",
    "accumulate_steps": "2 parts: 37 % less memory with MobileNetV2 ([benchmarks](benchmarks.md))",
}


def page() -> str:
    """Returns the text of docs/options.md."""
    parts = [INTRODUCTION]
    for title, kind, names in GROUPS:
        fields = {field.name: field for field in dataclasses.fields(kind)}
        entries = [_entry(fields[name]) for name in names.split() or fields]
        parts.append(f"## {title}\n\n" + "\n".join(entries) + "\n")
    return "\n".join(parts)


def _entry(field: "dataclasses.Field[Any]") -> str:
    default, metadata = field.default, field.metadata
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    facts = [f"default `{shown}`"] if shown else []
    facts += ["**fixed**"] if metadata["identity"] else []
    text = f"- `--{field.name}`" + (f" ({', '.join(facts)})" if facts else "")
    text += f": {metadata['help']}"
    if metadata["choices"]:
        text += f"; one of {', '.join(f'`{choice}`' for choice in metadata['choices'])}"
    if field.name in MEASURED:
        text += f". *Measured: {MEASURED[field.name]}.*"
    return textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False)


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
