"""What an output folder holds: the files of each frame, a table of the frames, whose they are."""

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mapseg import pictures
from mapseg.config import OUTPUTS
from mapseg.files import naming, write_text
from mapseg.inference.frames import RESULTS_MARK
from mapseg.labels import LabelSet

_SUFFIXES = {"ids": "png", "overlay": "jpg", "panel": "jpg", "video": "mp4"}

Row = dict[str, str]


@dataclass(frozen=True)
class Results:
    """The files that frames give.

    Attributes:
      out_dir: the output folder.
      outputs: what is written of each frame, of `config.OUTPUTS`.
      label_set: the classes of the ids.
      drawn: [256] bool, the ids to draw in pictures; None draws all.
    """

    out_dir: Path
    outputs: tuple[str, ...]
    label_set: LabelSet
    drawn: np.ndarray | None

    @property
    def columns(self) -> list[str]:
        """The columns of `frames.csv`."""
        fixed = ["frame", "status", "height", "width", "scale", "ms", "mean_confidence"]
        return fixed + [f"share:{name}" for name in self.label_set.names]

    def path(self, output: str, name: str) -> Path:
        """Returns the file of one output of a frame, or of a video."""
        return self.out_dir / output / f"{name}.{_SUFFIXES[output]}"

    def exist(self, name: str) -> bool:
        """Tells whether every file of a frame is there; a video is not one frame's."""
        return all(self.path(o, name).is_file() for o in self.outputs if o != "video")

    def read_ids(self, name: str) -> np.ndarray:
        """Reads the ids of a frame that was done before: [H, W] uint8."""
        with Image.open(self.path("ids", name)) as stored:
            return np.asarray(stored)

    def overlay(self, image: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Tints an image [H, W, 3] uint8 with the classes that are drawn."""
        return pictures.overlay(image, ids, self.label_set.palette, self.drawn)

    def write(
        self, name: str, image: np.ndarray, ids: np.ndarray, overlay: np.ndarray | None
    ) -> None:
        """Writes the files of a frame.

        Args:
          name: of the frame.
          image: [H, W, 3] uint8 RGB.
          ids: [H, W] uint8 train ids.
          overlay: [H, W, 3] uint8 RGB, if it is among the outputs.

        Raises:
          OSError: a file cannot be written.
        """
        if "ids" in self.outputs:
            pictures.write_png(self.path("ids", name), ids, self.label_set.palette)
        if "overlay" in self.outputs and overlay is not None:
            pictures.write_jpg(self.path("overlay", name), overlay)
        if "panel" in self.outputs:
            panel = pictures.panel(image, ids, self.label_set, drawn=self.drawn)
            pictures.write_jpg(self.path("panel", name), panel)

    def row(self, name: str, ids: np.ndarray, scale: float, ms: float, confidence: float) -> Row:
        """Returns what `frames.csv` says of a frame that was segmented."""
        shares = pictures.count_ids(ids)[: len(self.label_set.classes)] / ids.size
        fixed = [name, "ok", *map(str, ids.shape), f"{scale:.6g}", f"{ms:.1f}", f"{confidence:.4f}"]
        values = fixed + [f"{share:.6f}" for share in shares]
        return dict(zip(self.columns, values, strict=True))

    def failed_row(self, name: str, error: Exception) -> Row:
        """Returns what `frames.csv` says of a frame that could not be segmented."""
        return {**dict.fromkeys(self.columns, ""), "frame": name, "status": f"error: {error}"}


def claim(out_dir: Path, fingerprint: str) -> None:
    """Binds a folder to one fingerprint, so that results of two runs never mix.

    Raises:
      ValueError: it holds the results of another one, or other files.
    """
    path = out_dir / RESULTS_MARK
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        if stored != fingerprint:
            raise ValueError(
                f"{out_dir}: must hold results of the same run, checkpoint and options; it has "
                f"those of {stored}, asked is {fingerprint}. Remedy: another --out_dir"
            )
    elif any((out_dir / name).exists() for name in (*OUTPUTS, "frames.csv")):
        raise ValueError(
            f"{out_dir}: must be empty or hold results of mapseg; it has others, without an "
            f"{RESULTS_MARK}. Remedy: another --out_dir"
        )
    else:
        text = json.dumps({"fingerprint": fingerprint}, indent=2) + "\n"
        write_text(path, text)


class Journal:
    """`frames.csv`: its rows are noted as frames are done, and put in order at the end."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path, self._columns = path, columns
        self._notes_path = path.with_name("frames.journal.csv")
        self.rows = {**self._read(path), **self._read(self._notes_path)}

    def _read(self, path: Path) -> dict[str, Row]:
        """Reads the rows of frames that were done; failed ones are to be tried again."""
        if not path.is_file():
            return {}
        # A process that was killed leaves the last line without its end.
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        reader = csv.DictReader(whole.splitlines())
        if reader.fieldnames != self._columns:
            return {}
        return {row["frame"]: row for row in reader if row["status"] == "ok"}

    def _text(self, rows: Iterable[Row], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def __enter__(self) -> "Journal":
        write_text(self._notes_path, self._text(self.rows.values(), header=True))
        self._file = self._notes_path.open("a", encoding="utf-8", newline="")
        return self

    def append(self, row: Row) -> None:
        """Notes that a frame was done, or failed."""
        self.rows[row["frame"]] = row
        with naming(self._notes_path):
            self._file.write(self._text([row], header=False))
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # all rows are flushed; what was not, has been told
            self._file.close()

    def finish(self, names: Sequence[str]) -> None:
        """Writes the rows of some frames, in their order, in place of the notes."""
        rows = [self.rows[name] for name in names]
        write_text(self._path, self._text(rows, header=True))
        self._notes_path.unlink()
