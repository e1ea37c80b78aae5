"""Writes the export folder of a run, and checks each format against the predictor."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mapseg import __version__
from mapseg.config import to_json
from mapseg.files import whole_dir
from mapseg.inference.export.check import Segment, count_classes, equal_share, predict
from mapseg.inference.export.formats import ONNX, Format
from mapseg.inference.export.saved_model import write_saved_model
from mapseg.inference.export.source import Source

FORMAT_VERSION = 1


def export(
    source: Source,
    export_dir: Path,
    formats: Sequence[Format],
    frames: Sequence[np.ndarray],
    report: Callable[[str], None],
) -> Path:
    """Writes an export: its formats, `labels.json` with its classes, and `export.json`.

    Args:
      source: what to export.
      export_dir: see `check_export_dir`; written completely or not at all.
      formats: from `choose_formats`.
      frames: [H, W, 3] uint8 each, on which every format is compared with the predictor.
      report: receives a line for each format.

    Returns:
      `export_dir`.

    Raises:
      ValueError: the frames show a single class, or a format does not agree with the predictor.
    """
    expected = {
        plain: predict(source.whole_predictor if plain else source.predictor, frames)
        for plain in {form.plain for form in formats}
    }
    measured: dict[str, Any] = {}
    with whole_dir(export_dir) as partial:
        for form in formats:
            equal = equal_share(_write(form, source, partial), expected[form.plain])
            if equal < form.least_equal:
                raise ValueError(
                    f"{export_dir}: at least {form.least_equal:.1%} of the ids of format "
                    f"{form.name} must equal the predictor's; got {equal:.3%}. Nothing was "
                    "written. Remedy: leave this format out, and report it with the run's "
                    "config.json"
                )
            report(f"{form.name}: {equal:.3%} of the ids equal the predictor's")
            measured[form.name] = {"equal_ids": equal}
        facts = {
            "format_version": FORMAT_VERSION,
            "mapseg": __version__,
            "run": source.run.id,
            "step": source.step,
            "scale": source.scale,
            "options": to_json(source.config),
            "formats": measured,
            "frames": len(frames),
            "classes": max(map(count_classes, expected.values())),
        }
        for name, content in (
            ("labels.json", source.run.label_set.to_json()),
            ("export.json", facts),
        ):
            text = json.dumps(content, indent=1) + "\n"
            (partial / name).write_text(text, encoding="utf-8")
    return export_dir


def _write(form: Format, source: Source, folder: Path) -> Segment:
    """Writes a format into the folder; returns the function that the files compute."""
    if form == ONNX:
        from mapseg.inference.export.onnx_file import open_onnx, write_onnx

        write_onnx(source, folder / form.files[0])
        return open_onnx(folder / form.files[0])
    write_saved_model(source.predictor, source.run.label_set, folder)
    loaded = tf.saved_model.load(str(folder))
    return lambda images: loaded.segment(images)["ids"].numpy()
