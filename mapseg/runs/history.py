"""The history of a run: losses, rates and scores by step, in a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapseg.files import naming, whole_file

_REMEDY = "Remedy: remove that line, or restore the file as training wrote it"

HISTORY_COLUMNS = (
    "step",
    "loss",
    "learning_rate",
    "images_per_s",
    "loss_scale",
    "skipped_steps",
    "mean_iou",
    "pixel_accuracy",
    "gradient_norm",
    "weight_norm",
)


def read_history(path: Path) -> list[dict[str, float]]:
    """Reads a `history.csv`: one dict per row, without its empty columns.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a history.csv of mapseg.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such history. Remedy: train first, or give the folder of a run"
        )
    # A process that is killed while appending leaves an incomplete last row.
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        reader = csv.DictReader(whole.decode().splitlines())
        if not set(reader.fieldnames or ()) >= {"step", "loss"}:
            raise ValueError(f"{path}: must be a history.csv of mapseg with columns step, loss")
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: must be a CSV file in UTF-8; {error}. {_REMEDY}") from error
    return [_numbers(row, f"{path}, line {line}") for line, row in rows if row["step"]]


def _numbers(row: dict[Any, Any], place: str) -> dict[str, float]:
    numbers = {}
    for name, text in row.items():
        if text == "":
            continue
        try:
            numbers[name or "an extra value"] = float(text)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{place}: {name or 'an extra value'} must be a number or empty; got {text!r}. "
                f"{_REMEDY}"
            ) from error
    return numbers


def training_secs(rows: Sequence[Mapping[str, float]], batch_size: int) -> float:
    """Sums the time of the steps in a history, without compilation and evaluation."""
    secs, last_step = 0.0, 0.0
    for row in rows:
        if "images_per_s" in row:
            secs += (row["step"] - last_step) * batch_size / row["images_per_s"]
        if "loss" in row:  # the row of an evaluation may lie between two of steps
            last_step = row["step"]
    return secs


def append_history(path: Path, row: Mapping[str, float]) -> None:
    """Appends a row; missing columns stay empty.

    Raises:
      WriteError: the file cannot be written.
    """
    new = not path.exists()
    with naming(path), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def cut_history(path: Path, last_step: int) -> list[dict[str, float]]:
    """Drops the rows after a step, which a resumed run writes again; returns the remaining rows."""
    rows = [r for r in read_history(path) if r["step"] <= last_step] if path.is_file() else []
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows(_as_written(rows))
    return rows


def _as_written(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    counts = {"step", "skipped_steps"}
    return [{k: int(v) if k in counts else v for k, v in row.items()} for row in rows]
