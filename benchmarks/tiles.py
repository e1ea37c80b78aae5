"""Measures how many ids change when an image is predicted in tiles instead of as a whole.

python benchmarks/tiles.py --run_dir=RUN --images='FOLDER/*.jpg' [--megapixels=2] [--tiles=1025]
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags

from mapseg import cli
from mapseg.config import PredictConfig


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("run_dir", "", "a trained run", flag_values=values)
    flags.DEFINE_string("images", "", "glob of images", flag_values=values)
    flags.DEFINE_float("megapixels", 2.0, "size to resize the images to", flag_values=values)
    flags.DEFINE_list("tiles", ["1025"], "sides of tiles in pixels", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a table: a row for each image, a column for each size of tiles."""
    from mapseg.inference.predictor import load_predictor
    from mapseg.inference.reading import read_image
    from mapseg.runs.checkpoints import find_checkpoint
    from mapseg.runs.folder import open_run

    pattern = Path(cli.required(values, "images"))
    run = open_run(Path(cli.required(values, "run_dir")))
    path = find_checkpoint(run.run_dir)
    # The side of an image of any shape is below this: the first predictor takes it as a whole.
    sides = [100_001, *map(int, values.tiles)]
    predictors = [
        load_predictor(run, PredictConfig(scale="1", tile_px=side), path) for side in sides
    ]
    cli.report("| image | classes | " + " | ".join(f"tiles of {side}" for side in sides[1:]) + " |")
    cli.report("| --- | --- |" + " --- |" * len(sides[1:]))
    for image_path in sorted(pattern.parent.glob(pattern.name)):
        image = read_image(image_path)
        scale = math.sqrt(1e6 * values.megapixels / (image.shape[0] * image.shape[1]))
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        whole, *tiled = (predictor.segment(image).ids for predictor in predictors)
        shares = " | ".join(f"{(ids != whole).mean():.2%}" for ids in tiled)
        cli.report(f"| {image_path.name} | {len(np.unique(whole))} | {shares} |")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
