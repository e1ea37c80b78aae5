"""Recall of label pixels by the area of the connected region that they are in."""

from collections.abc import Iterable

import numpy as np

# Regions below 100 px, below 1000 px, ..., and the rest.
AREA_EDGES_PX = (100, 1_000, 10_000, 100_000)
_BAND_RUNS = 1 << 20


def region_counts(
    label: np.ndarray, prediction: np.ndarray, classes: Iterable[int]
) -> dict[int, np.ndarray]:
    """Counts the label pixels of each class, and the correct ones, by the area of their region.

    A region is a set of 8-connected pixels with the same label. Regions are joined from runs of
    equal pixels in a row, for all classes at once: OpenCV's components are those of one class.

    Args:
      label: [H, W] uint8 ids.
      prediction: [H, W] uint8 ids.
      classes: ids to count.

    Returns:
      By id: [len(AREA_EDGES_PX) + 1, 2] int64 pixels and correct pixels, by ascending area.
    """
    changes = np.ones(label.shape, bool)
    changes[:, 1:] = label[:, 1:] != label[:, :-1]
    starts = np.flatnonzero(changes)
    ids, lengths = label.reshape(-1)[starts], np.diff(starts, append=label.size)
    hits = np.add.reduceat((label == prediction).reshape(-1), starts, dtype=np.int32)
    regions = _joined(len(starts), *_touching_runs(starts, ids, label.shape[1]))
    bins = np.digitize(np.bincount(regions, lengths)[regions], AREA_EDGES_PX)
    areas = len(AREA_EDGES_PX) + 1
    places = ids * np.int64(areas) + bins
    sums = [np.bincount(places, weights, 256 * areas) for weights in (lengths, hits)]
    counts = np.stack(sums, axis=-1).reshape(256, areas, 2).astype(np.int64)
    return {c: counts[c] for c in classes}


def _touching_runs(
    starts: np.ndarray, ids: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the pairs of runs of the same id that touch in neighbouring rows, corners included.

    Args:
      starts: [N] int64, index of the first pixel of each run, row by row.
      ids: [N] uint8 id of each run.
      width: of the image.

    Returns:
      [M] int64 indices of the upper runs, and of the lower ones.
    """
    uppers, lowers = [], []
    ends = np.append(starts[1:], starts[-1] + width)  # the last run may end later, as if clipped
    for begin in range(0, len(starts), _BAND_RUNS):
        runs = np.arange(begin, min(begin + _BAND_RUNS, len(starts)))
        runs = runs[starts[runs] >= width]
        row = starts[runs] // width * width
        above = np.maximum(starts[runs] - 1, row), np.minimum(ends[runs], row + width - 1)
        first, last = (np.searchsorted(starts, side - width, "right") - 1 for side in above)
        counts = last - first + 1
        lower = np.repeat(runs, counts)
        upper = np.arange(len(lower)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        same = ids[upper] == ids[lower]
        uppers.append(upper[same])
        lowers.append(lower[same])
    return np.concatenate(uppers), np.concatenate(lowers)


def _joined(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Joins nodes by edges: [count] int64, the lowest node that each is connected with.

    Each round hooks the root of every tree with a lower neighbour to it, which at least halves the
    number of unfinished trees.
    """
    root = np.arange(count)
    while len(first):
        low, high = np.minimum(root[first], root[second]), np.maximum(root[first], root[second])
        root[high] = low
        while (root != (upper := root[root])).any():
            root = upper
        apart = root[first] != root[second]
        first, second = first[apart], second[apart]
    return root
