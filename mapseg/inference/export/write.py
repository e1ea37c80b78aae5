"""Exports a run and checks the result against the original model."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from mapseg.files import whole_dir
from mapseg.inference.export.saved_model import write_saved_model
from mapseg.inference.predictor import Predictor
from mapseg.runs.folder import Run

_OWN_FILES = {
    *("assets", "fingerprint.pb", "keras_metadata.pb", "labels.json", "saved_model.pb"),
    "variables",
}


def export(run: Run, predictor: Predictor, export_dir: Path) -> Path:
    """Writes a SavedModel and a `labels.json` of its classes, and checks it against the predictor.

    Args:
      run: the source of the classes.
      predictor: what to export; its scales, flip and tile size are fixed in the export.
      export_dir: written completely or not at all; an earlier export there is replaced.

    Returns:
      `export_dir`.

    Raises:
      ValueError: the folder holds other files, or the export does not agree with the predictor.
    """
    names = {p.name for p in export_dir.iterdir()} if export_dir.exists() else set()
    if names and not ({"labels.json", "saved_model.pb"} <= names <= _OWN_FILES):
        raise ValueError(
            f"{export_dir}: export_dir must be new, empty or an earlier export; it holds other "
            "files. Remedy: choose another --export_dir"
        )
    with whole_dir(export_dir) as partial:
        write_saved_model(predictor, run.label_set, partial)
        text = json.dumps(run.label_set.to_json(), indent=1) + "\n"
        (partial / "labels.json").write_text(text, encoding="utf-8")
        _check(predictor, partial)
    return export_dir


def _check(predictor: Predictor, saved_dir: Path) -> None:
    rng = np.random.default_rng(0)
    loaded = tf.saved_model.load(str(saved_dir))
    for size in ((97, 131), (64, 48)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        ids = loaded.segment(image[np.newaxis])["ids"][0].numpy()
        differing = int((ids != predictor.segment(image).ids).sum())
        if differing:
            raise ValueError(
                f"{saved_dir}: the export must give the model's ids; {differing} of {ids.size} "
                "pixels differ on a test image"
            )
