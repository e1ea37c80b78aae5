"""`inference.json`: whose results an output folder holds, and of what its videos are."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mapseg
from mapseg.config import OUTPUTS
from mapseg.files import write_text
from mapseg.inference.searching import RESULTS_MARK

FORMAT_VERSION = 2  # 1 had none, and did not note the sources of results


class Shown(NamedTuple):
    """What a video shows.

    Attributes:
      source: the folder or video of its frames.
      digest: of its frames, their content and their rate.
    """

    source: str
    digest: str


@dataclass(frozen=True)
class Mark:
    """What `inference.json` says.

    Attributes:
      out_dir: the output folder.
      fingerprint: tells the weights and options apart from others.
      videos: the videos that are whole, by name.
    """

    out_dir: Path
    fingerprint: str
    videos: dict[str, Shown]

    def note_video(self, name: str, shown: Shown) -> None:
        """Notes that a video is whole."""
        self.videos[name] = shown
        self.write()

    def forget_videos(self, names: set[str]) -> None:
        """Removes videos that do not show what they should any more."""
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
    """Reads what an output folder is bound to, or binds a new one to a fingerprint.

    Returns:
      The mark, which is not written yet where there was none.

    Raises:
      ValueError: the folder holds the results of another fingerprint or an earlier version, or
        other files.
    """
    path = out_dir / RESULTS_MARK
    if not path.is_file():
        if any((out_dir / name).exists() for name in (*OUTPUTS, "frames.csv")):
            raise ValueError(
                f"{out_dir}: must be empty or hold results of mapseg; it has others, without an "
                f"{RESULTS_MARK}. Remedy: another --out_dir"
            )
        return Mark(out_dir, fingerprint, {})
    try:
        mark = _parse(out_dir, json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged: {error!r}. Remedy: another --out_dir") from error
    if mark.fingerprint != fingerprint:
        raise ValueError(
            f"{out_dir}: must hold results of the same weights and options; it has those of "
            f"{mark.fingerprint}, asked is {fingerprint}. Remedy: another --out_dir"
        )
    return mark


def _parse(out_dir: Path, raw: dict[str, Any]) -> Mark:
    version = raw.get("format_version", 1)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{out_dir}: its results must be of format_version {FORMAT_VERSION}, which notes the "
            f"source of each; got {version}. Remedy: another --out_dir, or the mapseg that wrote "
            "them"
        )
    videos = {name: Shown(**shown) for name, shown in raw["videos"].items()}
    return Mark(out_dir, str(raw["fingerprint"]), videos)
