"""The share of each class over the frames of a folder or video, as a chart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mapseg.charts import dress
from mapseg.labels import LabelSet
from mapseg.pages.rendering import hex_color, percent, short_names
from mapseg.pages.svg import OTHER_COLOR, Chart, to_svg

CLASSES = 8
_POINTS = 150  # more would not be visible
_SIZE_IN = (9.6, 2.8)


def largest_classes(shares: np.ndarray) -> list[int]:
    """Returns the classes with the largest mean share, in the order of the classes.

    Args:
      shares: [frames, classes].
    """
    means = shares.mean(0)
    order = np.argsort(-means, kind="stable")[:CLASSES]
    return sorted(int(c) for c in order if means[c] > 0)


def shares_chart(
    shares: np.ndarray, label_set: LabelSet, largest: Sequence[int], name: str
) -> Chart:
    """Draws stacked shares by frame; the areas have the colours of their classes.

    Args:
      shares: [frames, classes] in [0, 1], of at least two frames.
      label_set: the classes.
      largest: classes that get an area of their own; the others share one.
      name: unique in the page.
    """
    bins = np.array_split(np.arange(len(shares)), min(len(shares), _POINTS))
    places = [1 + frames.mean() for frames in bins]
    means = np.array([shares[frames].mean(0) for frames in bins])
    rest = means.sum(1) - means[:, largest].sum(1)
    figure = Figure(figsize=_SIZE_IN)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    areas = axis.stackplot(
        places,
        *(100 * means[:, c] for c in largest),
        100 * np.maximum(rest, 0),
        colors=[*(hex_color(label_set.classes[c].color) for c in largest), OTHER_COLOR],
        linewidth=0,
    )
    for area, key in zip(areas, [*map(str, largest), "other"], strict=True):
        area.set_gid(f"class-{key}")
    dress(axis, "% of the pixels")
    axis.set_xlabel("frame")
    axis.set_xlim(places[0], places[-1])
    axis.set_ylim(0, 100)
    axis.xaxis.get_major_locator().set_params(integer=True)
    names = short_names(label_set.names)
    ends = [(names[c], shares[:, c].min(), shares[:, c].max()) for c in largest]
    spans = [f"{class_name} {percent(low)} to {percent(high)}" for class_name, low, high in ends]
    title = "Share of each class"
    return Chart(title, f"{title} by frame. {'; '.join(spans)}", to_svg(figure, name))
