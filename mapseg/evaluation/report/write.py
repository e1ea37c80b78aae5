"""Writes the report of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mapseg.evaluation.evaluation import Evaluation
from mapseg.evaluation.report.choice import choose_images
from mapseg.evaluation.report.command import (
    RECORDS,
    evaluate_command,
    report_command,
    train_command,
)
from mapseg.evaluation.report.comparing import Compared, compare_sources
from mapseg.evaluation.report.contents import image_values, run_values, score_values, script_data
from mapseg.evaluation.report.findings import Confusion, worst_confusions
from mapseg.evaluation.report.frames import read_frames
from mapseg.evaluation.report.source import Source, read_sources
from mapseg.evaluation.report.thumbnails import Picture, make_pictures
from mapseg.files import check_writable, write_text
from mapseg.pages.rendering import render

IMAGES = 24
_CONFUSIONS = 12


def write_report(
    run_dir: Path,
    records_dir: Path | None,
    progress: Callable[[str], None],
    *,
    split: str = "",
    compare: Sequence[Path] = (),
    images: int = IMAGES,
    frames_dir: Path | None = None,
    full_pictures: bool = False,
) -> Path:
    """Writes `report/index.html` into a run folder.

    Args:
      run_dir: the run.
      records_dir: the records that it was evaluated on; None makes a page without pictures.
      progress: receives progress lines.
      split: the evaluated split; empty is the run's `eval_split`.
      compare: folders of runs to compare with; the first one is the baseline.
      images: the most images to show.
      frames_dir: an output folder of infer_main.py, whose frames are shown too.
      full_pictures: also write pictures at full size, into `report/pictures`.

    Returns:
      The page.

    Raises:
      FileNotFoundError: no such run, records or frames, or an evaluated checkpoint was removed.
      ValueError: the records or checkpoints are not those that were evaluated, or a file is
        damaged.
      WriteError: the run folder is not writable; checked before any image is segmented.
    """
    sources = read_sources([run_dir, *compare], split)
    source, path = sources[0], run_dir / "report" / "index.html"
    check_writable(path.parent)
    compared = [compare_sources(source, other, progress) for other in sources[1:]]
    frames = read_frames(frames_dir) if frames_dir else []
    evaluation = source.evaluation
    confusions = worst_confusions(evaluation, _CONFUSIONS) if evaluation else []
    shown = [source, *(o for o, c in zip(sources[1:], compared, strict=True) if c.comparison)]
    places = _choose(evaluation, images, compared, confusions)
    pictures: list[Picture] = []
    if records_dir and places:
        full_dir = path.parent / "pictures" if full_pictures else None
        pictures = make_pictures(shown, records_dir, places, progress, full_dir)
    advice = _advice(source, records_dir, images)
    for line in advice:
        progress(" ".join(line))
    values = {
        "command": train_command(source.run, records_dir),
        "advice": advice,
        "frames": frames,
        **run_values(sources, compared),
        **score_values(evaluation, confusions, compared),
        **image_values(shown, pictures),
    }
    data = script_data(shown, pictures, values["heat"])
    write_text(path, render("mapseg.evaluation.report", values, data))
    return path


def _choose(
    evaluation: Evaluation | None,
    count: int,
    compared: Sequence[Compared],
    confusions: Sequence[Confusion],
) -> list[int]:
    """Returns the positions of the images to show; none without the counts of each image."""
    if evaluation is None or not evaluation.images:
        return []
    lists = [[change.place for change in other.images] for other in compared]
    lists.append([confusion.images[0] for confusion in confusions])
    return choose_images(evaluation, count, lists)


def _advice(source: Source, records_dir: Path | None, images: int) -> list[tuple[str, str]]:
    """Lists what the page lacks, each with the command that adds it."""
    evaluation, run = source.evaluation, source.run
    evaluate = evaluate_command(run, records_dir or RECORDS, source.split)
    if evaluation is None:
        return [(f"There is no evaluation of {source.split}. This command adds scores:", evaluate)]
    if not evaluation.images:
        text = "The evaluation has no counts of each image, as an earlier version wrote it."
        return [(f"{text} This command adds intervals and images:", evaluate)]
    lines = []
    if not evaluation.has_details:
        text = "Boundaries were not counted. This command adds boundary IoU:"
        lines.append((text, evaluate))
    if images and records_dir is None:
        text = "There are no images, as no records were given. This command adds them:"
        lines.append((text, report_command(run.run_dir, Path(RECORDS), source.split)))
    return lines
