"""Frames of an inference output folder for a report."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mapseg.inference.searching import RESULTS_MARK
from mapseg.pages.thumbnails import encode_photo

SHOWN = 12


class Frame(NamedTuple):
    """One segmented frame.

    Attributes:
      name: of the frame.
      picture: its overlay as data URI.
      confidence: mean confidence of its pixels; None if unknown.
    """

    name: str
    picture: str
    confidence: float | None


def read_frames(frames_dir: Path) -> list[Frame]:
    """Reads overlays of frames, evenly spaced over all frames of an output folder.

    Args:
      frames_dir: the `--out_dir` of infer_main.py, with the output `overlay`.

    Raises:
      FileNotFoundError: not an output folder.
      ValueError: it holds no overlays.
    """
    table = frames_dir / "frames.csv"
    for path in (frames_dir / RESULTS_MARK, table):
        if not path.is_file():
            raise FileNotFoundError(
                f"{frames_dir}: must be an output folder of infer_main.py; it has no {path.name}. "
                "Remedy: give the --out_dir of a finished run of inference"
            )
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [(row, frames_dir / "overlay" / f"{row.get('frame')}.jpg") for row in rows]
    pairs = [(row, path) for row, path in pairs if path.is_file()]
    if not pairs:
        raise ValueError(
            f"{frames_dir}: must hold overlays of its frames; it has none. Remedy: run "
            "infer_main.py with --outputs=ids,overlay"
        )
    chosen = np.unique(np.linspace(0, len(pairs) - 1, SHOWN).round().astype(int))
    return [_read_frame(*pairs[i]) for i in chosen]


def _read_frame(row: dict[str, str], path: Path) -> Frame:
    with Image.open(path) as overlay:
        picture = encode_photo(np.asarray(overlay.convert("RGB")))
    text = row.get("mean_confidence", "")
    is_known = text.replace(".", "", 1).isdecimal()
    return Frame(row["frame"], picture, float(text) if is_known else None)
