"""The values that the page's template and script show."""

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from mapseg.files import printable
from mapseg.inference.page.choice import confidence, least_confident
from mapseg.inference.page.picture import Picture
from mapseg.inference.page.shares import largest_classes, shares_chart
from mapseg.inference.results import Results, Row
from mapseg.pages.rendering import hex_color, short_names

LEAST = 12
FAILED = 100
_CHARTS = 50  # each takes a tenth of a second


def template_values(
    results: Results, rows: Sequence[Row], pictured: Sequence[Row], pictures: Mapping[int, Picture]
) -> dict[str, Any]:
    """Returns the values of the page's template.

    Args:
      results: the output folder.
      rows: all rows of `frames.csv`, in order.
      pictured: the rows of frames that have a picture.
      pictures: of the frames to show, by position in `pictured`.
    """
    label_set = results.classes.label_set
    done = [row for row in rows if row["status"] == "ok"]
    failed = [row for row in rows if row["status"] != "ok"]
    shown = [pictured[i] for i in pictures]
    groups = _groups(shown)
    shares = _shares(results, done)
    largest = largest_classes(shares) if done else []
    charts = {}
    for n, group in enumerate(groups[:_CHARTS]):
        places = [i for i, row in enumerate(done) if row["video"] == group]
        if len(places) > 1:
            charts[n] = shares_chart(shares[places], label_set, largest, f"shares-{n}")
    prefix = _common_folder(groups)
    frames = [
        {
            "name": row["frame"],
            "short": row["frame"].removeprefix(prefix),
            "group": groups.index(row["video"]),
            "confidence": confidence(row),
            "picture": picture,
        }
        for row, picture in zip(shown, pictures.values(), strict=True)
    ]
    return {
        "name": printable(results.out_dir.resolve().name),
        "classes": label_set.classes,
        "names": short_names(label_set.names),
        "largest": largest,
        "groups": [group.removeprefix(prefix) for group in groups],
        "charts": charts,
        "done": len(done),
        "done_groups": len(_groups(done)),
        "pictured": len(pictured),
        "frames": frames,
        "least": least_confident(shown, LEAST),
        "failed": failed[:FAILED],
        "failed_count": len(failed),
    }


def script_data(
    results: Results, pictured: Sequence[Row], pictures: Mapping[int, Picture]
) -> dict[str, Any]:
    """Returns the values of the page's script; see `template_values`."""
    label_set = results.classes.label_set
    shown = [pictured[i] for i in pictures]
    groups = _groups(shown)
    return {
        "classes": [
            {
                "name": name,
                "color": hex_color(c.color),
                "drawn": results.drawn is None or bool(results.drawn[c.id]),
            }
            for c, name in zip(label_set.classes, short_names(label_set.names), strict=True)
        ],
        "groups": [{"links": _links(results, group, ("video",))} for group in groups],
        "frames": [
            {
                "name": row["frame"],
                "group": groups.index(row["video"]),
                "confidence": confidence(row),
                "ids": picture.ids,
                "shares": {int(c): round(float(s[c]), 4) for c in np.flatnonzero(s)},
                "links": _links(results, row["frame"], ("overlay", "panel", "ids")),
            }
            for row, picture, s in zip(
                shown, pictures.values(), _shares(results, shown), strict=True
            )
        ],
    }


def _groups(rows: Sequence[Row]) -> list[str]:
    """Returns the folders and videos of frames, in order."""
    return [*dict.fromkeys(row["video"] for row in rows)]


def _common_folder(groups: Sequence[str]) -> str:
    """Returns the folder that contains all folders and videos, with a slash; empty if none."""
    parents = [str(PurePosixPath(group).parent) for group in groups]
    common = os.path.commonpath(parents) if parents else ""
    return f"{common}/" if common.strip("./") else ""


def _shares(results: Results, rows: Sequence[Row]) -> np.ndarray:
    """Returns the share of each class in the frames: [rows, classes]."""
    columns = [f"share:{name}" for name in results.classes.label_set.names]
    shares = [[float(row[column]) for column in columns] for row in rows]
    return np.array(shares, float).reshape(len(rows), len(columns))


def _links(results: Results, name: str, outputs: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the title and relative address of a frame's or video's full files that exist."""
    paths = [(output, results.path(output, name)) for output in outputs]
    return [
        (output, quote(path.relative_to(results.out_dir).as_posix()))
        for output, path in paths
        if path.is_file()
    ]
