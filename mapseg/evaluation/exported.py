"""How the scores of a split change if an export computes the ids."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.data.manifest import Manifest, read_manifest
from mapseg.data.whole_samples import even_places, read_places
from mapseg.evaluation.counting import ImageCounts, count_image
from mapseg.evaluation.evaluation import evaluation_of
from mapseg.evaluation.scores import to_number
from mapseg.inference.export.calibration import read_calibration_images
from mapseg.inference.export.check import Segment, cut
from mapseg.inference.export.formats import Format
from mapseg.inference.export.source import Source
from mapseg.progress import make_reporter
from mapseg.runs.folder import check_classes

# The mean IoU of all samples would differ little from that of these, and may take hours.
_MOST_IMAGES = 100


def rounding_options(
    source: Source,
    formats: Sequence[Format],
    records_dir: Path | str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Reads what formats with rounded weights need of records.

    Args:
      source: what is exported.
      formats: from `choose_formats`.
      records_dir: the records, or empty.
      progress: see `score_exports`.

    Returns:
      Options of `export`; none if there are no records or no such formats.

    Raises:
      FileNotFoundError: no such records.
      ValueError: they have other classes than the run's or lack its splits, or are damaged.
    """
    if not str(records_dir) or not any(form.rounded for form in formats):
        return {}
    manifest = read_manifest(records_dir)
    check_classes(source.run, manifest.classes, manifest.records_dir)
    calibrated = any(form.calibrated for form in formats)
    return {
        "calibration": read_calibration_images(source, manifest) if calibrated else (),
        "score": partial(score_exports, source, manifest=manifest, progress=progress),
    }


def score_exports(
    source: Source,
    segments: Mapping[str, Segment],
    manifest: Manifest,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Scores exports and their source on the run's evaluation split.

    At most 100 images are scored, at even distances over the split; large ones are cut.

    Args:
      source: what was exported.
      segments: by format, what its file computes.
      manifest: of the records.
      progress: called with a line every few seconds, and one for each format.

    Returns:
      By format: `images`, their number; `equal_ids`, the share of pixels with the source's id;
      `mean_iou` and `mean_iou_of_source`, fractions, None if no evaluated class is labelled.
    """
    split = manifest.split(source.run.train.eval_split)
    places = even_places(_MOST_IMAGES, split.samples)
    count = len(places)
    report = make_reporter(0, count, f"images of {split.name}", progress)
    predictor, label_set = source.whole_predictor, source.run.label_set
    counts: dict[str, list[ImageCounts]] = {name: [] for name in ("", *segments)}
    equal = dict.fromkeys(segments, 0)
    pixels = 0
    samples = read_places(manifest, split.name, label_set, places)
    for done, (image, label, key) in enumerate(samples, start=1):
        image, label = (cut(x, source.config, source.run.long_side_px) for x in (image, label))
        expected = predictor.segment(image).ids
        pixels += expected.size
        counts[""].append(count_image(key, label, expected, label_set))
        for name, segment in segments.items():
            ids = segment(image[np.newaxis])[0]
            equal[name] += int((ids == expected).sum())
            counts[name].append(count_image(key, label, ids, label_set))
        report(done)
    iou = {n: to_number(evaluation_of(images, label_set).mean_iou) for n, images in counts.items()}
    if iou[""] is not None:
        for name in segments:
            progress(f"{name}: mean IoU {iou[name]:.1%}, without export {iou['']:.1%}")
    return {
        name: {
            "images": count,
            "equal_ids": equal[name] / pixels,
            "mean_iou": iou[name],
            "mean_iou_of_source": iou[""],
        }
        for name in segments
    }
