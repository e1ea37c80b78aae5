"""What a call has to do, given what the output folder holds."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mapseg.inference.frame_table import FrameTable
from mapseg.inference.frames import Frame
from mapseg.inference.mark import Mark, Shown
from mapseg.inference.results import Results, Row, Source, read_source


class Task(NamedTuple):
    """A frame that needs work."""

    frame: Frame
    source: Source
    stored: bool  # all but its video is there from a call before, its ids too


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
      tasks: in the order of the frames.
      videos: those that are made, with what they will show.
    """

    tasks: list[Task]
    videos: dict[str, Shown]


def make_plan(
    frames: Sequence[Frame], every: int, results: Results, table: FrameTable, mark: Mark
) -> Plan:
    """Compares the frames asked for with what the folder holds, and removes what is outdated.

    A result holds while its source has the path and the state that its row says, or was moved. Of
    a source that was replaced the row, every file and the video are removed, whether or not this
    call asks for it. Rows of other frames are kept while their files are there.

    Raises:
      ValueError: results would take the place of those of another source, which is still there.
    """
    sources = {path: read_source(path) for path in {f.path for f in frames}}
    of = {frame.name: sources[frame.path] for frame in frames}
    shown = {frame.video: str(read_source(frame.shown).path) for frame in frames}
    _refuse_other_sources(frames, of, shown, results, table.rows, mark)

    rows = table.rows
    stored = [frame for frame in frames if frame.name in rows]
    same = [f for f in stored if rows[f.name]["source_state"] == of[f.name].state != ""]
    for frame in same:  # it may have been moved
        rows[frame.name] |= {"source": of[frame.name].path, "video": frame.video}
    matching = {f.name for f in same if rows[f.name]["status"] == "ok"}
    others = {name: row for name, row in rows.items() if name not in of}
    gone, outdated = _outdated_others(others, {*shown}, results)
    outdated |= {f.name for f in stored} - {f.name for f in same}
    replaced = {rows[name]["video"] for name in outdated}
    for name in outdated | (of.keys() - matching):
        results.remove(name)

    wanted: dict[str, Shown] = {}
    if "video" in results.outputs:
        digests = _digests(frames, of, every)
        wanted = {name: Shown(shown[name], digest) for name, digest in digests.items()}
        replaced |= {name for name in wanted if mark.videos.get(name) != wanted[name]}
    mark.forget_videos(replaced)
    table.drop([*gone, *outdated])

    done = {f.name for f in frames if f.name in matching and results.exist(f.name)}
    whole = {name for name in wanted if results.path("video", name).is_file()}
    making = {f.video for f in frames if f.name not in done or f.video not in whole} & {*wanted}
    if "ids" not in results.outputs:
        done -= {f.name for f in frames if f.video in making}
    tasks = [
        Task(frame, of[frame.name], frame.name in done)
        for frame in frames
        if frame.name not in done or frame.video in making
    ]
    return Plan(tasks, {name: wanted[name] for name in making})


def video_row_name(video: str) -> str:
    """Returns the name under which `frames.csv` has a video that could not be made."""
    return f"video/{video}.mp4"


def _refuse_other_sources(
    frames: Sequence[Frame],
    of: Mapping[str, Source],
    shown: Mapping[str, str],
    results: Results,
    rows: Mapping[str, Row],
    mark: Mark,
) -> None:
    claims = [
        (frame.name, rows[frame.name]["source"], of[frame.name].path)
        for frame in frames
        if frame.name in rows
    ]
    if "video" in results.outputs:
        claims += [
            (video_row_name(name), mark.videos[name].source, source)
            for name, source in shown.items()
            if name in mark.videos
        ]
    for name, stored, asked in claims:
        if stored != asked and _is_another_file(Path(stored), Path(asked)):
            raise ValueError(
                f"{results.out_dir}: results must not take the place of others; {name} is of "
                f"{stored}, asked is {asked}. Remedy: another --out_dir, or --frames=a folder or "
                "glob above both, so that their names differ"
            )


def _is_another_file(stored: Path, asked: Path) -> bool:
    try:
        return not stored.samefile(asked)
    except OSError:
        return False  # it was moved, or removed


def _outdated_others(
    rows: Mapping[str, Row], videos: set[str], results: Results
) -> tuple[set[str], set[str]]:
    """Finds the rows of other frames that do not hold any more.

    Args:
      rows: of what this call does not ask for, by name.
      videos: of this call, which makes their rows anew.
      results: tells which files are there.

    Returns:
      Names whose files are gone, or that failed and can no longer be tried; and names whose source
      was replaced.
    """
    gone, outdated = set(), set()
    states: dict[str, str] = {}
    for name, row in rows.items():
        path = row["source"]
        if path not in states:
            states[path] = read_source(Path(path)).state
        if name == video_row_name(row["video"]):
            gone |= {name} if row["video"] in videos or not states[path] else set()
        elif states[path] and states[path] != row["source_state"]:
            outdated.add(name)
        elif not (results.any_exists(name) if row["status"] == "ok" else states[path]):
            gone.add(name)
    return gone, outdated


def _digests(frames: Sequence[Frame], of: Mapping[str, Source], every: int) -> dict[str, str]:
    """Returns a digest of each video's frames, their content, and the rate that `every` gives."""
    hashes = {frame.video: hashlib.sha256(f"every {every}".encode()) for frame in frames}
    for frame in frames:
        hashes[frame.video].update(f"\n{frame.name}\n{of[frame.name].state}".encode())
    return {name: each.hexdigest()[:16] for name, each in hashes.items()}
