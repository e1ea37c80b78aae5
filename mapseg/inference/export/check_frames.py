"""The frames on which an export is compared with the predictor."""

from pathlib import Path

import numpy as np

from mapseg.config import InferConfig
from mapseg.data.manifest import read_manifest
from mapseg.data.whole_samples import even_places, read_places
from mapseg.inference.frames import find_frames
from mapseg.inference.reading import FrameReader
from mapseg.runs.folder import Run

_COUNT = 4
_SIZES = ((120, 160), (97, 211), (150, 101), (64, 90))


def read_check_frames(run: Run, frames: str, records_dir: Path | None) -> list[np.ndarray]:
    """Reads a few frames: [H, W, 3] uint8 each.

    Args:
      run: names the split of the records.
      frames: a folder, glob, list or video, as in inference; or empty.
      records_dir: used if `frames` is empty; without both, the frames are scripted.

    Raises:
      FileNotFoundError: no such frames or records.
      ValueError: a frame cannot be read.
    """
    if frames:
        paths = find_frames(InferConfig(frames=frames, out_dir=str(run.run_dir))).frames
        reader = FrameReader()
        chosen = (paths[place] for place in even_places(_COUNT, len(paths)))
        return [reader.read(frame.path, frame.number).image for frame in chosen]
    if records_dir:
        manifest = read_manifest(records_dir)
        split = manifest.split(run.train.eval_split)
        places = even_places(_COUNT, split.samples)
        return [image for image, *_ in read_places(manifest, split.name, run.label_set, places)]
    return [_scripted(size, seed) for seed, size in enumerate(_SIZES)]


def _scripted(size: tuple[int, int], seed: int) -> np.ndarray:
    """Draws sky above a road, with blocks of random colours and noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    picture = np.empty([height, width, 3])
    picture[:] = np.linspace([90, 150, 230], [220, 225, 230], height)[:, np.newaxis]
    picture[height // 2 :] = [100, 95, 100]
    for _ in range(12):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        side = rng.integers(8, height // 2)
        picture[top : top + side, left : left + side] = rng.integers(0, 256, 3)
    picture += rng.normal(0, 10, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)
