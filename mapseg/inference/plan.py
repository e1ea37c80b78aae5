"""Plans the work of a call, given the content of the output folder."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mapseg.inference.frame_table import FrameTable
from mapseg.inference.frames import Frame
from mapseg.inference.mark import Mark, Shown
from mapseg.inference.results import Results, Row, Source, read_digest, read_source


class Task(NamedTuple):
    """A frame that needs work."""

    frame: Frame
    source: Source
    stored: bool  # an earlier call wrote all its files, the ids too; only its video is missing


class Plan(NamedTuple):
    """The work of a call.

    Attributes:
      tasks: in the order of the frames.
      videos: the videos to write, by name.
    """

    tasks: list[Task]
    videos: dict[str, Shown]


def make_plan(
    frames: Sequence[Frame],
    every: int,
    results: Results,
    table: FrameTable,
    mark: Mark,
    progress: Callable[[str], None],
) -> Plan:
    """Compares the requested frames with the content of the folder; removes outdated results.

    A result is valid while its source has the state recorded in its row, or other times but the
    content recorded there, even if it was moved. If a source was replaced, its row, files and video
    are removed, whether or not this call requests them. Rows of other frames are kept while their
    files exist.

    Raises:
      ValueError: results would overwrite those of another source, which still exists.
    """
    sources = {path: read_source(path) for path in {f.path for f in frames}}
    of = {frame.name: sources[frame.path] for frame in frames}
    shown = {frame.video: str(read_source(frame.shown).path) for frame in frames}
    _refuse_other_sources(frames, of, shown, results, table.rows, mark)

    rows = table.rows
    stored = [frame for frame in frames if frame.name in rows]
    current = _current_sources(frames, sources, rows)
    changed = _changed_rows(rows, current, progress)
    same = [f for f in stored if f.name not in changed]
    for frame in same:  # it may have been moved
        rows[frame.name] |= {"source": of[frame.name].path, "video": frame.video}
    matching = {f.name for f in same if rows[f.name]["status"] == "ok"}
    other_rows = {name: row for name, row in rows.items() if name not in of}
    states = {name: state for name, (_, state) in current.items()}
    gone, outdated = _outdated_rows(other_rows, states, changed, {*shown}, results)
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
    finished = {name for name in wanted if results.path("video", name).is_file()}
    making = {f.video for f in frames if f.name not in done or f.video not in finished}
    making &= {*wanted}
    if "ids" not in results.outputs:
        done -= {f.name for f in frames if f.video in making}
    tasks = [
        Task(frame, of[frame.name], frame.name in done)
        for frame in frames
        if frame.name not in done or frame.video in making
    ]
    return Plan(tasks, {name: wanted[name] for name in making})


def video_row_name(video: str) -> str:
    """Returns the name in `frames.csv` of a video that could not be written."""
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
    for name, stored, requested in claims:
        if stored != requested and _is_another_file(Path(stored), Path(requested)):
            raise ValueError(
                f"{results.out_dir}: {name} must keep its source, {stored}; got {requested}. "
                "Remedy: use another --out_dir, or --frames=a folder or glob that covers both, so "
                "that their names differ"
            )


def _is_another_file(stored: Path, requested: Path) -> bool:
    try:
        return not stored.samefile(requested)
    except OSError:
        return False  # it was moved or removed


def _current_sources(
    frames: Sequence[Frame], sources: Mapping[Path, Source], rows: Mapping[str, Row]
) -> dict[str, tuple[Path, str]]:
    """Returns the file of each row, by name, and its current state; empty if it is gone."""
    paths = {name: Path(row["source"]) for name, row in rows.items()}
    paths |= {frame.name: frame.path for frame in frames if frame.name in rows}
    states = {path: source.state for path, source in sources.items()}
    for path in {*paths.values()} - states.keys():
        states[path] = read_source(path).state
    return {name: (path, states[path]) for name, path in paths.items()}


def _changed_rows(
    rows: Mapping[str, Row],
    current: Mapping[str, tuple[Path, str]],
    progress: Callable[[str], None],
) -> set[str]:
    """Returns the names of the rows whose source was replaced or is gone.

    Files of the same size with other times, as those of a copy, are compared by content; the rows
    of equal ones get the new times.
    """
    stored = {name: row["source_state"].partition(":")[::2] for name, row in rows.items()}
    changed = {
        name for name, (state, _) in stored.items() if state != current[name][1] or not state
    }
    sizes = {name: current[name][1].partition("-")[0] for name in changed}
    resized = {name for name in changed if stored[name][0].partition("-")[0] != sizes[name]}
    newer = [name for name in rows if name in changed - resized and stored[name][1]]
    if newer:
        progress(f"comparing {len(newer)} frames whose files have new times by content")
    for name in newer:
        digest = stored[name][1]
        if read_digest(*current[name]) == digest:
            rows[name]["source_state"] = f"{current[name][1]}:{digest}"
            changed.remove(name)
    return changed


def _outdated_rows(
    rows: Mapping[str, Row],
    states: Mapping[str, str],
    changed: set[str],
    videos: set[str],
    results: Results,
) -> tuple[set[str], set[str]]:
    """Finds outdated rows among those that this call does not request.

    Args:
      rows: the rows of other frames and videos, by name.
      states: the current state of their sources; empty if they are gone.
      changed: the rows whose source was replaced or is gone.
      videos: the videos of this call, which rewrites their rows.
      results: the files of the output folder.

    Returns:
      Names whose files are gone, or that failed and can no longer be retried; and names whose
      source was replaced.
    """
    gone, outdated = set(), set()
    for name, row in rows.items():
        if name == video_row_name(row["video"]):
            gone |= {name} if row["video"] in videos or not states[name] else set()
        elif states[name] and name in changed:
            outdated.add(name)
        elif not (results.any_exists(name) if row["status"] == "ok" else states[name]):
            gone.add(name)
    return gone, outdated


def _digests(frames: Sequence[Frame], of: Mapping[str, Source], every: int) -> dict[str, str]:
    """Returns a digest of each video's frames, their content, and its frame rate."""
    hashes = {frame.video: hashlib.sha256(f"every {every}".encode()) for frame in frames}
    for frame in frames:
        hashes[frame.video].update(f"\n{frame.name}\n{of[frame.name].state}".encode())
    return {name: each.hexdigest()[:16] for name, each in hashes.items()}
