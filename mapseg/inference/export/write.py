"""Writes the export folder of a run, and checks each format against the predictor."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mapseg.config import to_json
from mapseg.files import whole_dir
from mapseg.inference.export.check import Segment, check, count_classes, predict
from mapseg.inference.export.formats import (
    LITERT_DYNAMIC_INT8,
    LITERT_INT8,
    ONNX,
    SAVED_MODEL,
    Format,
)
from mapseg.inference.export.saved_model import write_saved_model
from mapseg.inference.export.source import Source

FORMAT_VERSION = 1

# Scores the exports with rounded weights, by the names of their formats.
Score = Callable[[Mapping[str, Segment]], dict[str, dict[str, Any]]]


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Makes GPUs multiply float32 exactly: with TF32, 0.1 % of the ids may differ from a CPU's."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(enabled)


@_exact_float32()
def export(
    source: Source,
    export_dir: Path,
    formats: Sequence[Format],
    frames: Sequence[np.ndarray],
    report: Callable[[str], None],
    *,
    calibration: Sequence[np.ndarray] = (),
    score: Score | None = None,
) -> Path:
    """Writes an export: its formats, `labels.json` with its classes, and `export.json`.

    Args:
      source: what to export.
      export_dir: see `check_export_dir`; written completely or not at all.
      formats: from `choose_formats`.
      frames: [H, W, 3] uint8 each, on which every format is compared with the predictor.
      report: receives a line for each format.
      calibration: [H, W, 3] uint8 each; see `read_calibration_images`.
      score: its result is stored in `export.json`, if there are formats with rounded weights.

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
    rounded: dict[str, Segment] = {}
    with whole_dir(export_dir) as partial:
        for form in formats:
            _write(form, source, partial, calibration)
            segment = open_format(form, partial)
            equal = check(form, segment, expected[form.plain])
            report(f"{form.name}: {equal:.3%} of the ids equal the predictor's")
            measured[form.name] = {"equal_ids": equal}
            if form.rounded:
                rounded[form.name] = segment
        if score is not None and rounded:
            for name, scores in score(rounded).items():
                measured[name]["scores"] = scores
        facts = {
            "format_version": FORMAT_VERSION,
            **source.facts,
            "run": source.run.id,
            "options": to_json(source.config),
            "formats": measured,
            "check": {
                "frames": len(frames),
                "classes_shown": max(map(count_classes, expected.values())),
            },
        }
        _write_json(partial / "labels.json", source.run.label_set.to_json())
        _write_json(partial / "export.json", facts)
    return export_dir


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def open_format(form: Format, folder: Path) -> Segment:
    """Returns the function from images to ids that the files of a format compute."""
    path = folder / form.files[0]
    if form == SAVED_MODEL:
        loaded = tf.saved_model.load(str(folder))
        return lambda images: loaded.segment(images)["ids"].numpy()
    if form == ONNX:
        from mapseg.inference.export.onnx_file import open_onnx

        return open_onnx(path)
    from mapseg.inference.export.litert import open_litert

    return open_litert(path)


def _write(form: Format, source: Source, folder: Path, calibration: Sequence[np.ndarray]) -> None:
    """Writes the files of a format into the folder."""
    path = folder / form.files[0]
    if form == SAVED_MODEL:
        write_saved_model(source, folder)
    elif form == ONNX:
        from mapseg.inference.export.onnx_file import write_onnx

        write_onnx(source, path)
    else:
        from mapseg.inference.export.litert import write_litert, write_litert_int8

        if form == LITERT_INT8:
            write_litert_int8(source, calibration, path)
        else:
            write_litert(source, path, dynamic_int8=form == LITERT_DYNAMIC_INT8)
