"""Places the objects on a street.

Every choice is drawn from one generator in a fixed order: the same seed gives the same street.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from data_prep.canvas import Canvas, Color, Range
from data_prep.street_things import (
    CARS,
    LONG_VEHICLES,
    draw_building,
    draw_bush,
    draw_person,
    draw_pole,
    draw_sign,
    draw_street_light,
    draw_traffic_light,
    draw_tree,
    draw_vehicle,
)

STREET_M = 170.0  # how far the street reaches
STEP_M = 0.9  # from frame to frame


class Item(NamedTuple):
    """An object on the street: how to draw it, its position, and its step per frame."""

    draw: Callable[[Canvas, float, float, Generator], None]
    x_m: float
    s_m: float
    step_m: float = 0.0


@dataclass(frozen=True)
class Street:
    """The layout of a street; each pair is (left, right)."""

    lane_m: float
    lanes: tuple[int, int]
    edges_m: Range  # x of the kerbs
    walks_m: Range  # x of the pavements' far sides
    crossing_m: float | None


def build_street(rng: Generator, lane_m: Range) -> Street:
    """Builds a street; `lane_m` is the range of its lane width."""
    width_m, (left, right) = rng.uniform(*lane_m), (1 + (rng.random(2) < 0.3)).tolist()
    shoulders, walks = rng.choice([0.4, 0.4, 2.5], 2), rng.uniform(2, 3.6, 2)  # 2.5 m: parking
    edges = -left * width_m - shoulders[0], right * width_m + shoulders[1]
    crossing_m = rng.uniform(8, 20)
    return Street(
        lane_m=width_m,
        lanes=(left, right),
        edges_m=edges,
        walks_m=(edges[0] - walks[0], edges[1] + walks[1]),
        crossing_m=crossing_m if rng.random() < 0.85 else None,
    )


def items_on(rng: Generator, street: Street, facades: Sequence[Color]) -> list[Item]:
    """Returns the objects on a street; its houses have the colours of `facades`."""
    items = [*_traffic(rng, street)]
    for side, walk in enumerate(street.walks_m):
        front = walk + np.sign(walk) * rng.choice([2.5, 6.0])
        items += [*_houses(rng, front, facades), *_kerbside(rng, street, side)]
    return items


def _places(rng: Generator, first: Range, gap: Range) -> Iterator[float]:
    """Yields positions along the street; `gap` is the range of their spacing."""
    s = rng.uniform(*first)
    while s < STREET_M:
        yield s
        s += rng.uniform(*gap)


def _traffic(rng: Generator, street: Street) -> Iterator[Item]:
    """Yields the vehicles in the lanes; long ones keep to the two middle lanes."""
    for lane in range(-street.lanes[0], street.lanes[1]):
        kinds = CARS + LONG_VEHICLES if lane in (-1, 0) else CARS
        for s in _places(rng, (10, 26), (18, 44)):
            body = kinds[rng.integers(len(kinds))]
            draw = partial(draw_vehicle, body=body, oncoming=lane < 0)
            x = (lane + 0.5) * street.lane_m + rng.uniform(-0.25, 0.25)
            yield Item(draw, x, s, STEP_M if lane >= 0 else -STEP_M)


def _houses(rng: Generator, front: float, facades: Sequence[Color]) -> Iterator[Item]:
    """Yields the houses behind one pavement, with gardens between them."""
    out, built = np.sign(front), rng.choice([0.3, 0.8])
    for s in _places(rng, (-4, 6), (18.5, 24)):
        if rng.random() < built:
            facade, length = facades[int(rng.integers(len(facades)))], rng.uniform(15, 18)
            draw = partial(draw_building, facade=facade, length=length)
            yield Item(draw, front, s + length)
        else:
            for plant in (draw_tree, draw_bush, draw_tree, draw_bush):
                yield Item(plant, front + out * rng.uniform(1, 8), s + rng.uniform(0, 18))


def _kerbside(rng: Generator, street: Street, side: int) -> Iterator[Item]:
    """Yields the objects and people along the left (0) or right (1) kerb."""
    out, edge, crossing = 2 * side - 1, street.edges_m[side], street.crossing_m
    kinds = (draw_pole, draw_street_light, draw_sign, draw_sign, draw_tree)
    for s in _places(rng, (4, 9), (4, 11)):
        yield Item(kinds[rng.integers(len(kinds))], edge + out * 0.8, s)
    for s in _places(rng, (4, 9), (3, 16)):
        yield Item(draw_person, edge + out * rng.uniform(0.9, 1.8), s, 0.1 * out)
    if abs(edge) > street.lanes[side] * street.lane_m + 2:
        for s in _places(rng, (3, 12), (5.2, 14)):
            body = CARS[rng.integers(len(CARS))]
            if crossing is None or not crossing - 6 < s < crossing + 5:
                draw = partial(draw_vehicle, body=body, oncoming=side == 0)
                yield Item(draw, edge - out * 1.25, s)
    if crossing is not None:
        yield Item(draw_traffic_light, edge + out * 0.5, crossing - 0.5)
        if rng.random() < 0.5:
            yield Item(draw_person, edge * rng.uniform(0.7, 0.95), crossing + 1.5)
