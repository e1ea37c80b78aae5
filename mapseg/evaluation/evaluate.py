"""A predictor and a labelled split -> an evaluation and panels."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.config import PredictConfig, to_json
from mapseg.data.batches import stream_samples
from mapseg.data.manifest import Manifest
from mapseg.evaluation.counting import ImageCounts, count_image, to_cells
from mapseg.evaluation.evaluation import Evaluation, evaluation_of
from mapseg.evaluation.stored import parse_evaluation
from mapseg.inference.predictor import Predictor
from mapseg.labels import LabelSet
from mapseg.pictures import panel, write_jpg
from mapseg.progress import make_reporter
from mapseg.runs.checkpoints import checkpoint_step, weights_sha256

_LATER_FACTS = {"step", "samples", "weights_sha256"}  # not written by ea21d24
_GATHERED = 32  # images whose counts are sent at once

AddUp = Callable[[np.ndarray], np.ndarray]


def evaluate(
    predictor: Predictor,
    manifest: Manifest,
    split: str,
    label_set: LabelSet,
    progress: Callable[[str], None],
    *,
    max_samples: int = 0,
    details: bool = False,
    translation: np.ndarray | None = None,
    panels_dir: Path | None = None,
    panels: int = 0,
    on_panel: Callable[[str, np.ndarray], None] = lambda name, picture: None,
    share: tuple[int, int] = (0, 1),
    add_up: AddUp = lambda values: values,
) -> Evaluation:
    """Scores a predictor on a split, at the labels' resolution.

    Args:
      predictor: called with one image at a time.
      manifest: of the records.
      split: name of a split.
      label_set: the classes of the labels.
      progress: called with a line every few seconds.
      max_samples: number scored, from the first; 0 is all.
      details: also count boundaries, regions and, without translation, the calibration; only for
        a single process.
      translation: [256] uint8 id of `label_set`, or VOID, by the predictor's id; None if equal.
      panels_dir: folder for pictures of image, prediction and ground truth; emptied first.
      panels: number of these pictures.
      on_panel: called with the name of the sample and each of these pictures.
      share: (i, n): evaluates every n-th image from the i-th, so n processes share the work.
      add_up: sums arrays over all processes.

    Returns:
      The evaluation of all images, on every process.

    Raises:
      ValueError: no such split.
    """
    total = min(manifest.split(split).samples, max_samples or sys.maxsize)
    images: list[ImageCounts] = []
    _remove_pictures(panels_dir)
    report = make_reporter(0, total, f"images of {split}", progress)
    samples = stream_samples(manifest, split, label_set, first=total, share=share).prefetch(1)
    for done, (image, label, key) in enumerate(samples.as_numpy_iterator(), start=1):
        name = key.decode()
        with _naming_sample(name, image):
            ids, known = _predict(predictor, image, translation, probability=details)
            images.append(
                count_image(name, label, ids, label_set, details=details, probability=known)
            )
            if panels_dir is not None and done <= panels:
                on_panel(name, picture := panel(image, ids, label_set, label))
                write_jpg(panels_dir / f"{name}.jpg", picture)
        report(min(done * share[1], total))
    if share[1] > 1:
        images = _gather(images, total, len(label_set.classes), share, add_up)
    return evaluation_of(images, label_set)


def _remove_pictures(panels_dir: Path | None) -> None:
    """Removes the pictures of earlier evaluations, which may show another split or checkpoint."""
    for path in panels_dir.rglob("*.jpg") if panels_dir else ():
        path.unlink()


def _predict(
    predictor: Predictor, image: np.ndarray, translation: np.ndarray | None, *, probability: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the ids of an image in the classes of its label, and their probability if known."""
    if translation is None:
        result = predictor.segment(image, probability=probability)
        return result.ids, result.probability
    # The probability of merged classes would be a sum over them, which the predictor lacks.
    return translation[predictor.segment(image).ids], None


def _gather(
    images: list[ImageCounts], total: int, classes: int, share: tuple[int, int], add_up: AddUp
) -> list[ImageCounts]:
    """Collects the confusion matrices of all processes, in the order of the images."""
    mine = dict(zip(range(share[0], total, share[1]), images, strict=True))
    names = {place: np.frombuffer(image.name.encode(), np.uint8) for place, image in mine.items()}
    lengths = np.zeros(total)
    lengths[[*names]] = [name.size for name in names.values()]
    longest = int(add_up(lengths).max(initial=0))
    gathered = []
    for start in range(0, total, _GATHERED):  # a bounded number of dense matrices at a time
        size = min(_GATHERED, total - start)
        matrices = np.zeros((size, classes, classes + 1))
        texts = np.zeros((size, longest))
        for i in range(size):
            if start + i in mine:
                matrices[i] = mine[start + i].matrix(classes)
                texts[i, : names[start + i].size] = names[start + i]
        matrices, texts = add_up(matrices), add_up(texts)
        for matrix, text in zip(matrices, texts, strict=True):
            name = bytes(text.astype(np.uint8)).rstrip(b"\0").decode()
            gathered.append(ImageCounts(name, to_cells(matrix)))
    return gathered


@contextmanager
def _naming_sample(name: str, image: np.ndarray) -> Iterator[None]:
    """Adds the name and size of a sample to any error, which keeps its type and traceback."""
    try:
        yield
    except Exception as error:
        height, width = image.shape[:2]
        error.add_note(f"while evaluating sample {name}, {height} x {width} pixels")
        raise


def evaluation_facts(
    checkpoint_path: Path,
    manifest: Manifest,
    split: str,
    config: PredictConfig,
    max_samples: int = 0,
) -> dict[str, Any]:
    """Describes an evaluation, the same way during training and after it.

    Args:
      checkpoint_path: folder of the checkpoint.
      manifest: of the records.
      split: name of a split.
      config: how whole images are predicted.
      max_samples: as in `evaluate`.

    Returns:
      The facts, for `stored.write_evaluation` and `matching_evaluation`.
    """
    total = manifest.split(split).samples
    return {
        "split": split,
        "step": checkpoint_step(checkpoint_path),
        "checkpoint": checkpoint_path.name,
        # The run may be trained again from scratch, to the same step.
        "weights_sha256": weights_sha256(checkpoint_path),
        "samples": min(total, max_samples) if max_samples else total,
        "records_digest": manifest.split(split).digest,
        **to_json(config),
    }


def matching_evaluation(
    path: Path, label_set: LabelSet, facts: dict[str, Any]
) -> Evaluation | None:
    """Reads a stored evaluation if it was measured the same way.

    Args:
      path: from `stored.evaluation_path`.
      label_set: the run's.
      facts: must equal the stored ones; see `evaluation_facts`.

    Returns:
      The evaluation; None if the file is missing or damaged, or its facts differ. Files of an
      earlier version may lack newer facts, and images.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        lacking = _LATER_FACTS - set(stored) if "checkpoint" in stored else set()
        if any(stored[name] != facts[name] for name in facts.keys() - lacking):
            return None
        evaluation = parse_evaluation(stored, path, label_set)
        return evaluation if evaluation.label_set.classes == label_set.classes else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
