"""Overfits one crop with each encoder and precision, to reveal wrong dilation or alignment.

    python benchmarks/overfit.py --image=IMAGE --label=LABEL [--encoders=...] [--precisions=...]

The label is a PNG of ids (the indices of a palette image); the crop is taken from the centre.
Prints the step at which the network, in inference mode, first reaches 95 % pixel accuracy, and the
mean IoU of the crop's classes at that step.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mapseg import cli
from mapseg.config import ENCODERS, PRECISIONS

STEPS, GOAL = 300, 0.95


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("image", "", "image to overfit", flag_values=values)
    flags.DEFINE_string("label", "", "PNG of its class ids", flag_values=values)
    flags.DEFINE_integer("crop_px", 129, "side of the crop in pixels", flag_values=values)
    flags.DEFINE_list("encoders", list(ENCODERS), "encoders to train", flag_values=values)
    flags.DEFINE_list(
        "precisions", list(PRECISIONS[1:]), "precisions to train with", flag_values=values
    )
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a row for every encoder and precision; returns 1 if one misses the goal."""
    from mapseg.inference.reading import read_image

    image = read_image(Path(cli.required(values, "image")))
    label = read_label(Path(cli.required(values, "label")))
    top, left = ((side - values.crop_px) // 2 for side in label.shape)
    window = slice(top, top + values.crop_px), slice(left, left + values.crop_px)
    failed = 0
    print("| encoder | precision | steps to 95 % | accuracy then | mean IoU then | a step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for encoder in values.encoders:
        for precision in values.precisions:
            reached, scores, secs = overfit(image[window], label[window], encoder, precision)
            failed += reached is None
            steps = reached or f"not within {STEPS}"
            print(
                f"| {encoder} | {precision} | {steps} | {scores.pixel_accuracy:.1%} | "
                f"{scores.mean_iou:.1%} | {secs:.2f} s |",
                flush=True,
            )
    return 1 if failed else 0


def read_label(path: Path) -> Any:
    """Reads a label map [H, W] uint8; the indices of a palette image."""
    import numpy as np
    from PIL import Image

    return np.array(Image.open(path))


def overfit(
    image: Any, label: Any, encoder: str, precision: str, every_steps: int = 20
) -> tuple[int | None, Any, float]:
    """Trains on one crop until the accuracy reaches the goal.

    Args:
      image: [H, W, 3] uint8 RGB.
      label: [H, W] uint8 ids; 65 and above are ignored.
      encoder: one of ENCODERS.
      precision: float32, mixed_float16 or mixed_bfloat16.
      every_steps: steps between measurements of the accuracy.

    Returns:
      (steps to the goal or None, the last scores, seconds per step).
    """
    import numpy as np
    import tensorflow as tf

    from mapseg.config import ModelConfig, PredictConfig, TrainConfig
    from mapseg.evaluation.scores import Scores, confusion_matrix
    from mapseg.inference.predictor import Predictor
    from mapseg.labels import VOID, LabelClass, make_label_set
    from mapseg.model.network import live_network
    from mapseg.runs.folder import Run
    from mapseg.training.state import build_state
    from mapseg.training.step import make_step

    label = np.where(label < 65, label, VOID).astype(np.uint8)
    config = TrainConfig(
        batch_size=1,
        precision=precision,
        loss="ce",
        optimizer="adamw",
        schedule="cosine",
        schedule_steps=STEPS,
        learning_rate=2e-3,
        warmup_steps=10,
        weight_decay=0.0,
    )
    model = ModelConfig(
        encoder=encoder, encoder_weights="none", batch_norm_momentum=0.8, dropout=0.0
    )
    labels = make_label_set([LabelClass(i, str(i), (i, i, i)) for i in range(65)], "all")
    run = Run(Path(), model, config, labels, max(label.shape), (), "")
    state = build_state(run, print, fresh=True)
    step = make_step(state, config, tf.distribute.get_strategy())
    predictor = Predictor(live_network(state.model), PredictConfig(scale="1"), max(label.shape))
    batch = tf.constant(image[np.newaxis]), tf.constant(label[np.newaxis])
    for done in range(every_steps, STEPS + 1, every_steps):
        started = time.perf_counter()
        for _ in range(every_steps):
            loss, *_ = step(*batch)
        _ = float(loss)
        secs = (time.perf_counter() - started) / every_steps
        ids = predictor.segment(image).ids
        scores = Scores(confusion_matrix(label, ids, len(labels.classes)), labels)
        if scores.pixel_accuracy >= GOAL:
            return done, scores, secs
    return None, scores, secs


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
