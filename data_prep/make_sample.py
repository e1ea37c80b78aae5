"""Writes a small dataset of synthetic street scenes in the format of Mapillary Vistas v1.2.

`python -m data_prep.make_sample --out_dir=D` writes `D/config_v1.2.json`, `D/training` and
`D/validation` with `images/KEY.jpg`, `labels/KEY.png` and `instances/KEY.png`, `D/testing/images`
(no labels, as in Vistas), and the frames of a driving camera in the layout of KITTI raw.
"""

import base64
import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from data_prep.canvas import CONFIG_PATH, LABELS
from data_prep.scenes import TRAINING, VALIDATION, draw_scene
from mapseg import cli
from mapseg.files import whole_dir

DEFAULT_COUNTS = {"training": 40, "validation": 8, "testing": 2, "frames": 12}
DRIVE_FRAMES = 40  # then another drive begins
SIZES = ((240, 320), (300, 400), (333, 250), (270, 360), (337, 449), (360, 270))
FRAME_SIZE = (188, 621)  # half of KITTI's
SPLITS = {"training": TRAINING, "validation": VALIDATION, "testing": VALIDATION}


def make_key(seed: int, split: str, index: int) -> str:
    """Returns the 22 characters that name a sample; some begin with - or _, as in Vistas."""
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()[:16]
    key = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return key if index % 4 else "-_"[index // 4 % 2] + key[1:]


def write_sample(
    out_dir: Path, counts: Mapping[str, int], seed: int, progress: Callable[[str], None]
) -> None:
    """Writes the dataset atomically.

    Args:
      out_dir: a folder that is empty or does not exist.
      counts: number of scenes of `training`, `validation` and `testing`, and of `frames`.
      seed: 0 or more; the same seed gives the same files.
      progress: receives lines that report what was written.

    Raises:
      ValueError: out_dir is not empty.
    """
    out_dir = out_dir.resolve()
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise ValueError(
            f"out_dir must be new or an empty folder; got {out_dir}, which is not empty. "
            "Remedy: choose another --out_dir, or remove the folder"
        )
    with whole_dir(out_dir) as folder:
        shutil.copyfile(CONFIG_PATH, folder / "config_v1.2.json")
        for part, (split, settings) in enumerate(SPLITS.items()):
            kinds = ("images", "labels", "instances") if split != "testing" else ("images",)
            for kind in kinds:
                (folder / split / kind).mkdir(parents=True)
            for index in range(counts[split]):
                scene = draw_scene(settings, SIZES[index % len(SIZES)], (seed, part, index))
                _write_scene(folder / split, kinds, make_key(seed, split, index), scene)
            progress(f"{split}: {counts[split]} scenes")
        for index in range(counts["frames"]):
            drive, frame = divmod(index, DRIVE_FRAMES)
            image, _, _ = draw_scene(VALIDATION, FRAME_SIZE, (seed, len(SPLITS), drive), frame)
            data = f"2011_09_26/2011_09_26_drive_{drive + 1:04d}_sync/image_02/data"
            (folder / "frames" / data).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / "frames" / data / f"{frame:010d}.png")
        progress(f"frames: {counts['frames']}")


def _write_scene(
    folder: Path, kinds: Sequence[str], key: str, scene: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    image, label, instances = scene
    Image.fromarray(image).save(folder / "images" / f"{key}.jpg", quality=88)
    if "labels" in kinds:
        indexed = Image.fromarray(label).convert("P")
        indexed.putpalette([value for entry in LABELS for value in entry["color"]])
        indexed.save(folder / "labels" / f"{key}.png")
        Image.fromarray(instances).save(folder / "instances" / f"{key}.png")


def _work_on(values: flags.FlagValues) -> int:
    out_dir = Path(cli.required(values, "out_dir"))
    counts = {name: values[name].value for name in DEFAULT_COUNTS}
    write_sample(out_dir, counts, values.seed, cli.report)
    cli.report(f"{out_dir}: finished")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("out_dir", "", "folder for the dataset", flag_values=values)
    for name, count in DEFAULT_COUNTS.items():
        text = f"number of {name} scenes" if name in SPLITS else "number of frames of a drive"
        flags.DEFINE_integer(name, count, text, lower_bound=0, flag_values=values)
    flags.DEFINE_integer("seed", 1, "seed of the scenes", lower_bound=0, flag_values=values)
    return cli.run(_work_on, values, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
