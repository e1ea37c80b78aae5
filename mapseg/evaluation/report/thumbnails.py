"""The pictures inside a report: chosen images, their labels and predictions, as data URIs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.config import PredictConfig, from_json
from mapseg.data.manifest import Manifest, read_manifest
from mapseg.evaluation.report.command import evaluate_command
from mapseg.evaluation.report.source import Source
from mapseg.evaluation.stored import evaluation_path
from mapseg.files import whole_dir
from mapseg.pages.thumbnails import encode_ids, encode_photo, thumbnail_size
from mapseg.pictures import write_jpg, write_png
from mapseg.progress import make_reporter
from mapseg.runs.checkpoints import find_checkpoint, weights_sha256
from mapseg.runs.folder import check_classes

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, label, prediction


@dataclass(frozen=True)
class Picture:
    """One image of a report.

    Attributes:
      place: its position in the split.
      photo: a JPEG as data URI.
      size: (height, width) of the pictures, in pixels.
      label: a greyscale PNG of train ids or VOID as data URI.
      predictions: the predictions of each run, as `label`.
      files: names of the full pictures in their folder, by title.
    """

    place: int
    photo: str
    size: tuple[int, int]
    label: str
    predictions: tuple[str, ...]
    files: dict[str, str]


def make_pictures(
    sources: Sequence[Source],
    records_dir: Path,
    places: Sequence[int],
    progress: Callable[[str], None],
    full_dir: Path | None = None,
) -> list[Picture]:
    """Segments some images of a split again and encodes their pictures.

    Args:
      sources: the run of the report and the runs it is compared with, all of the same classes.
      records_dir: the records that they were evaluated on.
      places: positions in the split.
      progress: receives progress lines.
      full_dir: folder for pictures at full size, which is replaced; None writes none.

    Returns:
      The pictures, in the order of `places`.

    Raises:
      FileNotFoundError: no such records, or an evaluated checkpoint was removed.
      ValueError: the records or checkpoints are not those that were evaluated.
    """
    manifest = read_manifest(records_dir)
    checkpoints = [_check_evaluated(source, manifest) for source in sources]
    report = make_reporter(0, len(sources) * len(places), "predictions", progress)
    pictures: list[Picture] = []
    palette = sources[0].run.label_set.palette
    with whole_dir(full_dir) if full_dir else nullcontext() as folder:
        samples = _predict(sources[0], checkpoints[0], manifest, places)
        for place, sample in zip(places, samples, strict=True):
            files = _write_full(folder, len(pictures), sample, palette) if folder else {}
            pictures.append(_encode(place, sample, files))
            report(len(pictures))
    for n, (source, checkpoint) in enumerate(zip(sources[1:], checkpoints[1:], strict=True), 1):
        for i, sample in enumerate(_predict(source, checkpoint, manifest, places)):
            predictions = (*pictures[i].predictions, encode_ids(sample[2]))
            pictures[i] = replace(pictures[i], predictions=predictions)
            report(n * len(places) + i + 1)
    return pictures


def _encode(place: int, sample: Sample, files: dict[str, str]) -> Picture:
    image, label, prediction = sample
    ids = encode_ids(label), (encode_ids(prediction),)
    return Picture(place, encode_photo(image), thumbnail_size(image), *ids, files)


def _check_evaluated(source: Source, manifest: Manifest) -> Path:
    """Returns the checkpoint that was evaluated; the records must be those it was evaluated on."""
    run, facts = source.run, source.facts
    check_classes(run, manifest.classes, manifest.records_dir)
    path = evaluation_path(run.run_dir, source.split)
    again = f"Remedy: {evaluate_command(run, manifest.records_dir, source.split)}"
    if facts.get("records_digest") != manifest.split(source.split).digest:
        raise ValueError(
            f"{manifest.records_dir}: the records must be those of the evaluation {path}; they "
            f"differ. {again}"
        )
    step = facts.get("step")
    try:
        checkpoint = find_checkpoint(run.run_dir, str(step))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{run.checkpoints_dir}: must hold the checkpoint of the evaluation {path}; got none "
            f"of step {step}. {again}"
        ) from error
    if facts.get("weights_sha256") != weights_sha256(checkpoint):
        raise ValueError(
            f"{checkpoint}: the weights must be those of the evaluation {path}; they differ. "
            f"{again}"
        )
    return checkpoint


def _predict(
    source: Source, checkpoint: Path, manifest: Manifest, places: Sequence[int]
) -> Iterator[Sample]:
    """Yields (image, label, prediction) of samples, predicted as for the evaluation."""
    from mapseg.data.whole_samples import read_places
    from mapseg.inference.predictor import load_predictor

    names = {field.name for field in fields(PredictConfig)}
    stored: dict[str, Any] = {n: value for n, value in source.facts.items() if n in names}
    path = evaluation_path(source.run.run_dir, source.split)
    config = from_json(PredictConfig, stored, str(path))
    predictor = load_predictor(source.run, config, checkpoint)
    for image, label, _ in read_places(manifest, source.split, source.run.label_set, places):
        yield image, label, predictor.segment(image).ids


def _write_full(folder: Path, number: int, sample: Sample, palette: np.ndarray) -> dict[str, str]:
    """Writes the pictures of a sample at full size; returns their names by title."""
    image, label, prediction = sample
    files = {
        "image": f"{number:03d}-image.jpg",
        "prediction": f"{number:03d}-prediction.png",
        "ground truth": f"{number:03d}-label.png",
    }
    write_jpg(folder / files["image"], image)
    write_png(folder / files["prediction"], prediction, palette)
    write_png(folder / files["ground truth"], label, palette)
    return files
