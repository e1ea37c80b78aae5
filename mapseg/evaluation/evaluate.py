"""A predictor and a labelled split -> scores and panels."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.config import PredictConfig, to_json
from mapseg.data.batches import stream_samples
from mapseg.data.manifest import Manifest
from mapseg.evaluation.scores import Scores, confusion_matrix, dump_scores
from mapseg.files import write_text
from mapseg.inference.predictor import Predictor
from mapseg.labels import LabelSet
from mapseg.pictures import panel, write_jpg
from mapseg.progress import make_reporter
from mapseg.runs.checkpoints import checkpoint_step, weights_sha256

_LATER_FACTS = {"step", "samples", "weights_sha256"}  # not written by ea21d24


def evaluate(
    predictor: Predictor,
    manifest: Manifest,
    split: str,
    label_set: LabelSet,
    progress: Callable[[str], None],
    *,
    max_samples: int = 0,
    panels_dir: Path | None = None,
    panels: int = 0,
    on_panel: Callable[[str, np.ndarray], None] = lambda name, picture: None,
    share: tuple[int, int] = (0, 1),
    add_up: Callable[[np.ndarray], np.ndarray] = lambda matrix: matrix,
) -> Scores:
    """Scores a predictor on a split, at the labels' resolution.

    Args:
      predictor: called with one image at a time.
      manifest: of the records.
      split: name of a split.
      label_set: the classes of the predictor's ids.
      progress: called with a line every few seconds.
      max_samples: number scored, from the first; 0 is all.
      panels_dir: folder for pictures of image, prediction and ground truth.
      panels: number of these pictures.
      on_panel: called with the name of the sample and each of these pictures.
      share: (i, n): evaluates every n-th image from the i-th, so n processes share the work.
      add_up: adds up the confusion matrices of all shares.

    Returns:
      The scores of the summed confusion matrix.

    Raises:
      ValueError: no such split.
    """
    total = manifest.split(split).samples
    total = min(total, max_samples) if max_samples else total
    classes = len(label_set.classes)
    confusion = np.zeros((classes, classes), np.int64)
    report = make_reporter(0, total, f"images of {split}", progress)
    samples = stream_samples(manifest, split, label_set, first=total, share=share).prefetch(1)
    for done, (image, label, name) in enumerate(samples.as_numpy_iterator(), start=1):
        with _naming_sample(name.decode(), image):
            ids = predictor.segment(image).ids
            confusion += confusion_matrix(label, ids, classes)
            if panels_dir is not None and done <= panels:
                picture = panel(image, ids, label_set, label)
                write_jpg(panels_dir / f"{name.decode()}.jpg", picture)
                on_panel(name.decode(), picture)
        report(min(done * share[1], total))
    return Scores(add_up(confusion).astype(np.int64), label_set)


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
      Keyword arguments for `write_evaluation` and `read_evaluation`.
    """
    total = manifest.split(split).samples
    return {
        "step": checkpoint_step(checkpoint_path),
        "checkpoint": checkpoint_path.name,
        # The run may be trained again from scratch, to the same step.
        "weights_sha256": weights_sha256(checkpoint_path),
        "samples": min(total, max_samples) if max_samples else total,
        "records_digest": manifest.split(split).digest,
        **to_json(config),
    }


def write_evaluation(run_dir: Path, split: str, scores: Scores, **facts: object) -> None:
    """Writes `evaluation/<split>.json` in a run folder; for facts see `evaluation_facts`."""
    write_text(_path(run_dir, split), dump_scores(scores, split=split, **facts))


def read_evaluation(
    run_dir: Path, split: str, label_set: LabelSet, **facts: object
) -> Scores | None:
    """Reads the scores of `evaluation/<split>.json`.

    Args:
      run_dir: a run folder.
      split: name of a split.
      label_set: the run's.
      **facts: must equal the stored ones; see `evaluation_facts`.

    Returns:
      The scores; None if the file is missing or damaged, or its facts differ. Files of an earlier
      version may lack newer facts.
    """
    try:
        stored = json.loads(_path(run_dir, split).read_text(encoding="utf-8"))
        lacking = _LATER_FACTS - set(stored) if "checkpoint" in stored else set()
        same = all(stored[name] == facts[name] for name in facts.keys() - lacking)
        return Scores(np.array(stored["confusion"], np.int64), label_set) if same else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _path(run_dir: Path, split: str) -> Path:
    return run_dir / "evaluation" / f"{split}.json"
