"""Writes the page of an output folder."""

from collections.abc import Sequence
from pathlib import Path

from mapseg.files import write_text
from mapseg.inference.page.choice import choose_pictures
from mapseg.inference.page.contents import script_data, template_values
from mapseg.inference.page.picture import read_picture
from mapseg.inference.results import PAGE_NAME, Results, Row
from mapseg.pages.rendering import render


def write_page(results: Results, rows: Sequence[Row], fingerprint: str) -> Path:
    """Writes `index.html`, which shows the frames of all calls that wrote into an output folder.

    Args:
      results: the output folder.
      rows: all rows of `frames.csv`, in order.
      fingerprint: the weights, classes and options.

    Raises:
      ValueError: the stored picture of a frame is damaged.
      OSError: the page cannot be written.
    """
    # One pass over the folder: on a network drive, checking each file takes minutes.
    stored = {*(results.out_dir / "page").rglob("*.json")}
    paths = {row["frame"]: results.path("page", row["frame"]) for row in rows}
    pictured = [row for row in rows if row["status"] == "ok" and paths[row["frame"]] in stored]
    pictures = choose_pictures(pictured, lambda row: read_picture(paths[row["frame"]]))
    values = template_values(results, rows, pictured, pictures)
    data = script_data(results, pictured, pictures)
    path = results.out_dir / PAGE_NAME
    write_text(path, render("mapseg.inference.page", values | {"fingerprint": fingerprint}, data))
    return path
