"""`inference.json`: the origin of the results in an output folder, and of its videos."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mapseg
from mapseg.config import OUTPUTS
from mapseg.files import write_text
from mapseg.inference.results import PAGE_NAME
from mapseg.inference.searching import RESULTS_MARK

FORMAT_VERSION = 2  # version 1 had no such field and did not record the sources of results


class Shown(NamedTuple):
    """The content of a video.

    Attributes:
      source: the folder or video of its frames.
      digest: digest of its frames' names and content, and of the frame rate.
    """

    source: str
    digest: str


@dataclass(frozen=True)
class Mark:
    """The content of `inference.json`.

    Attributes:
      out_dir: the output folder.
      fingerprint: identifies the weights and options.
      videos: the finished videos, by name.
    """

    out_dir: Path
    fingerprint: str
    videos: dict[str, Shown]

    def note_video(self, name: str, shown: Shown) -> None:
        """Records that a video is finished."""
        self.videos[name] = shown
        self.write()

    def forget_videos(self, names: set[str]) -> None:
        """Removes videos that are outdated, with their files."""
        if any(self.videos.pop(name, None) for name in names):
            self.write()
        for name in names:
            with contextlib.suppress(OSError):
                (self.out_dir / "video" / f"{name}.mp4").unlink()

    def write(self) -> None:
        """Writes the file."""
        raw = {
            "format_version": FORMAT_VERSION,
            "mapseg": mapseg.__version__,
            "fingerprint": self.fingerprint,
            "videos": {name: shown._asdict() for name, shown in self.videos.items()},
        }
        write_text(self.out_dir / RESULTS_MARK, json.dumps(raw, indent=2) + "\n")


def read_mark(out_dir: Path, fingerprint: str) -> Mark:
    """Reads the mark of an output folder, or makes one for a new folder.

    Returns:
      The mark; a new one is not written yet.

    Raises:
      ValueError: the folder holds results of another fingerprint or an earlier version, or files
        that are not results.
    """
    path = out_dir / RESULTS_MARK
    if not path.is_file():
        if any((out_dir / name).exists() for name in (*OUTPUTS, "frames.csv", PAGE_NAME)):
            raise ValueError(
                f"{out_dir}: must be empty or hold results of mapseg; got other files, without an "
                f"{RESULTS_MARK}. Remedy: use another --out_dir"
            )
        return Mark(out_dir, fingerprint, {})
    try:
        mark = _parse(out_dir, json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged: {error!r}. Remedy: use another --out_dir") from error
    if mark.fingerprint != fingerprint:
        raise ValueError(
            f"{out_dir}: must hold results of the same weights and options, {fingerprint}; got "
            f"{mark.fingerprint}. Remedy: use another --out_dir"
        )
    return mark


def _parse(out_dir: Path, raw: dict[str, Any]) -> Mark:
    version = raw.get("format_version", 1)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{out_dir}: its results must have format_version {FORMAT_VERSION}, which records the "
            f"source of each; got {version}. Remedy: use another --out_dir, or the version of "
            "mapseg that wrote them"
        )
    videos = {name: Shown(**shown) for name, shown in raw["videos"].items()}
    return Mark(out_dir, str(raw["fingerprint"]), videos)
