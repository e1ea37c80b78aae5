"""The results of each frame in an output folder: its files and its row in `frames.csv`."""

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mapseg import pictures
from mapseg.config import OUTPUTS
from mapseg.files import file_sha256, printable, quoted_errno
from mapseg.inference.frames import Frame
from mapseg.inference.output_classes import OutputClasses
from mapseg.inference.page.picture import write_picture

_SUFFIXES = {"ids": "png", "overlay": "jpg", "panel": "jpg", "page": "json", "video": "mp4"}
PAGE_NAME = "index.html"

Row = dict[str, str]


class Source(NamedTuple):
    """The file that a result was computed from.

    Attributes:
      path: path of the image or video, printable.
      state: its size and times; changes whenever its content does. In `frames.csv` a colon and a
        digest of the content follow, by which a copy with other times is recognized.
    """

    path: str
    state: str


def read_source(path: Path) -> Source:
    """Returns the state of a file; empty if it does not exist.

    It includes the inode's change time: programs that unpack or copy files preserve the
    modification time, so a replaced file may have the same size and modification time.
    """
    try:
        stat = path.stat()
    except OSError:
        return Source(printable(path), "")
    return Source(printable(path), f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}")


@functools.lru_cache(maxsize=64)
def read_digest(path: Path, state: str) -> str:
    """Returns a digest of a file's content; empty if it is no regular file or cannot be read.

    Args:
      path: the file.
      state: from `read_source`; the file is read again only if it differs.
    """
    if not _is_file(path):
        return ""  # reading a pipe would never end
    try:
        return file_sha256(path)[:16]
    except OSError:
        return ""


@dataclass(frozen=True)
class Results:
    """The result files of frames.

    Attributes:
      out_dir: the output folder.
      outputs: the outputs to write, from `config.OUTPUTS`.
      classes: the classes of outputs, and their ids in files.
      drawn: [256] bool, the classes to draw in pictures; None draws all.
    """

    out_dir: Path
    outputs: tuple[str, ...]
    classes: OutputClasses
    drawn: np.ndarray | None

    @property
    def columns(self) -> list[str]:
        """The columns of `frames.csv`."""
        fixed = ["frame", "status", "height", "width", "scale", "ms", "mean_confidence"]
        bound = ["source", "source_state", "video"]
        return [*fixed, *bound, *(f"share:{name}" for name in self.classes.label_set.names)]

    def path(self, output: str, name: str) -> Path:
        """Returns the file of one output of a frame, or of a video."""
        return self.out_dir / output / f"{name}.{_SUFFIXES[output]}"

    def exist(self, name: str) -> bool:
        """Returns whether every file of a frame exists; videos do not count."""
        return all(_is_file(self.path(o, name)) for o in self.outputs if o != "video")

    def any_exists(self, name: str) -> bool:
        """Returns whether a frame has a file of any output, whether or not it is requested."""
        return any(_is_file(self.path(o, name)) for o in OUTPUTS if o != "video")

    @functools.cached_property
    def _existing_outputs(self) -> list[str]:
        # On a network drive, checking each file of 25,000 frames takes minutes.
        existing = [o for o in OUTPUTS if o in self.outputs or (self.out_dir / o).is_dir()]
        return [o for o in existing if o != "video"]

    def remove(self, name: str) -> None:
        """Removes every file of a frame."""
        for output in self._existing_outputs:
            with contextlib.suppress(OSError):
                self.path(output, name).unlink()

    def read_ids(self, name: str) -> np.ndarray:
        """Reads the classes of a frame that an earlier call wrote: [H, W] uint8."""
        with Image.open(self.path("ids", name)) as stored:
            return self.classes.from_file(np.asarray(stored))

    def overlay(self, image: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Tints an image [H, W, 3] uint8 with the classes that are drawn."""
        return pictures.overlay(image, ids, self.classes.label_set.palette, self.drawn)

    def write(
        self, name: str, image: np.ndarray, ids: np.ndarray, overlay: np.ndarray | None
    ) -> None:
        """Writes the files of a frame.

        Args:
          name: name of the frame.
          image: [H, W, 3] uint8 RGB.
          ids: [H, W] uint8, the class of each pixel, or VOID.
          overlay: [H, W, 3] uint8 RGB, if it is among the outputs.

        Raises:
          OSError: a file cannot be written.
          ValueError: a picture is too large for its file format.
        """
        if "ids" in self.outputs:
            written = self.classes.to_file(ids)
            pictures.write_png(self.path("ids", name), written, self.classes.file_palette)
        if "overlay" in self.outputs and overlay is not None:
            pictures.write_jpg(self.path("overlay", name), overlay)
        if "panel" in self.outputs:
            panel = pictures.panel(image, ids, self.classes.label_set, drawn=self.drawn)
            pictures.write_jpg(self.path("panel", name), panel)
        if "page" in self.outputs:
            write_picture(self.path("page", name), image, ids)

    def row(
        self,
        frame: Frame,
        source: Source,
        ids: np.ndarray,
        scale: float,
        ms: float,
        confidence: float,
    ) -> Row:
        """Returns the row in `frames.csv` of a segmented frame."""
        shares = pictures.count_ids(ids)[: len(self.classes.label_set.classes)] / ids.size
        fixed = ["ok", *map(str, ids.shape), f"{scale:.6g}", f"{ms:.1f}", f"{confidence:.4f}"]
        values = [frame.name, *fixed, *source, frame.video, *(f"{share:.6f}" for share in shares)]
        return dict(zip(self.columns, values, strict=True))

    def failed_row(self, name: str, source: Source, video: str, error: BaseException) -> Row:
        """Returns the row in `frames.csv` of a frame or video that failed."""
        row = dict.fromkeys(self.columns, "")
        row |= {"frame": name, "status": f"error: {_cause(error)}", "video": video}
        return row | {"source": source.path, "source_state": source.state}


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113, Path.is_file raises if a name is too long


def _cause(error: BaseException) -> str:
    text = printable(" ".join(str(error).split()))
    kind = type(error).__name__
    if kind == "ResourceExhaustedError" and quoted_errno(error) is None:
        return "the device's memory is full. Remedy: lower --tile_px or --batch_size"
    return text if isinstance(error, ValueError | OSError) else f"{kind}: {text[:1000]}"
