"""Draws the objects on a street, each at a position (x, s).

Each object has its own random generator, so it looks the same in every frame of a drive.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator

from data_prep.canvas import (
    BUILDING,
    BUS,
    CAR,
    NEAR_M,
    PERSON,
    POLE,
    SIGN,
    STREET_LIGHT,
    TRAFFIC_LIGHT,
    TRUCK,
    VEGETATION,
    Canvas,
    Color,
    Point,
    Range,
    across,
    along,
    ring,
)


def draw_building(
    canvas: Canvas, x: float, s: float, rng: Generator, facade: Color, length: float
) -> None:
    """Draws a house that ends at s: the front towards the road, one side towards the camera."""
    start, side = s - length, np.sign(x)
    floors, floor_m, back = int(rng.integers(2, 6)), rng.uniform(2.8, 3.4), x + side * 9
    top = floors * floor_m + 0.6
    facade = np.asarray(facade) * rng.uniform(0.85, 1.1) + rng.uniform(-10, 10, 3)
    front, flank = facade * rng.uniform(0.95, 1.1), facade * rng.uniform(0.6, 0.8)
    glass = rng.uniform(0.6, 1.4, (floors, 16, 1)) * (66, 82, 100)
    if rng.random() < 0.5:
        tiles, ridge = rng.uniform(0.7, 1.1) * np.array([122, 66, 50]), ((x + back) / 2, top + 2.6)
        eaves = [(x, top, start), (x, top, s)]
        canvas.face([*eaves, (*ridge, s), (*ridge, start)], tiles, BUILDING)
        canvas.face([eaves[0], (*ridge, start), (back, top, start)], flank, BUILDING)
    canvas.face(across((x, back), (0, top), start), flank, BUILDING)
    canvas.face(along(x, (0, top), (start, s)), front, BUILDING)
    canvas.face(along(x, (top - 0.5, top), (start, s)), front * 0.7, BUILDING)
    canvas.face(along(x, (0, 0.9), (start, s)), front * 0.75, BUILDING)
    for floor in range(floors):
        low, high = floor * floor_m + 1.1, floor * floor_m + 2.5
        for i, a in enumerate(np.arange(s - 2.2, start + 0.5, -2.6)):
            frame = along(x, (low - 0.2, high + 0.2), (a - 0.2, a + 1.6))
            canvas.face(frame, front * 1.2, BUILDING)
            canvas.face(along(x, (low, high), (a, a + 1.4)), glass[floor, i], BUILDING)
        for i, b in enumerate((1.2, 4.0, 6.6)):
            pane = across((x + side * b, x + side * (b + 1.3)), (low, high), start)
            canvas.face(pane, glass[floor, -1 - i] * 0.8, BUILDING)


def _draw_leaves(canvas: Canvas, center: Point, half: Range, rng: Generator) -> None:
    """Draws foliage: dabs in an ellipse, large ones first, then small ones, more when near."""
    x, y, s = center
    green = np.array([70, 106, 44]) * rng.uniform(0.75, 1.15) + rng.uniform(-12, 12, 3)
    size_px = half[1] * canvas.camera.focal_px / max(s - canvas.camera.s_m, NEAR_M)
    for i, (angle, reach, tone) in enumerate(rng.random((60, 3))[: 16 + int(size_px)].tolist()):
        dx, dy = [math.sqrt(reach) * turn(math.tau * angle) for turn in (math.cos, math.sin)]
        large, light = i < 20, 0.5 + 0.5 * tone + (0.2 if i < 20 else 0.35) * dy
        place = (x + dx * half[0], y + dy * half[1], s)
        canvas.disc(place, half[1] * (0.4 if large else 0.18), green * light, VEGETATION)


def draw_tree(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """Draws a tree; the trunk is vegetation too, as in Vistas."""
    height, half = rng.uniform(4.5, 8.5), rng.uniform(0.13, 0.24)
    canvas.shade((x - 2, x + 2), (s - 1, s + 1), 0.75)
    canvas.face(across((x - half, x + half), (0, height * 0.6), s), (84, 68, 54), VEGETATION)
    _draw_leaves(canvas, (x, height * 0.66, s), (height * 0.28, height * 0.3), rng)


def draw_bush(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """Draws a bush, which is only foliage."""
    _draw_leaves(canvas, (x, 0.6, s), (rng.uniform(0.8, 1.8), 0.7), rng)


def draw_pole(canvas: Canvas, x: float, s: float, rng: Generator, height: float = 6.0) -> None:
    """Draws a pole, which also carries signs or lights."""
    grey, n = np.array([66, 68, 72]) * rng.uniform(0.85, 1.1), canvas.new_instance(POLE)
    canvas.face(across((x - 0.14, x + 0.14), (0, height), s), grey, POLE, n)
    canvas.face(across((x - 0.09, x - 0.02), (0, height), s), grey * 1.4, POLE, n)


def draw_street_light(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """Draws a pole with an arm that holds a lamp over the road."""
    height, tip = rng.uniform(4.2, 5.4), x - np.sign(x) * 1.8
    draw_pole(canvas, x, s, rng, height)
    n = canvas.new_instance(STREET_LIGHT)
    arm = [(x, height - 0.2, s), (x, height + 0.05, s), (tip, height + 0.5, s)]
    canvas.face([*arm, (tip, height + 0.3, s)], (72, 74, 78), STREET_LIGHT, n)
    lamp = (tip - 0.8, tip + 0.8)
    canvas.face(across(lamp, (height + 0.35, height + 0.7), s), (56, 58, 62), STREET_LIGHT, n)
    canvas.face(across(lamp, (height + 0.1, height + 0.38), s), (250, 240, 190), STREET_LIGHT, n)


# (corners, turn in degrees, rim, inside): yield, prohibition, mandatory, stop, info, warning.
_SIGNS: tuple[tuple[int, float, Color, Color], ...] = (
    (3, 90, (196, 30, 36), (238, 236, 230)),
    (24, 0, (200, 28, 34), (240, 238, 232)),
    (24, 0, (225, 228, 232), (28, 84, 176)),
    (8, 22.5, (236, 234, 230), (190, 24, 32)),
    (4, 45, (228, 230, 234), (24, 92, 180)),
    (4, 0, (36, 34, 30), (244, 190, 30)),
)


def draw_sign(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """Draws a pole with one of six traffic signs."""
    height, radius = rng.uniform(2.2, 2.7), rng.uniform(0.55, 0.7)
    draw_pole(canvas, x, s, rng, height)
    n = canvas.new_instance(SIGN)
    corners, turn, rim, inside = _SIGNS[rng.integers(len(_SIGNS))]
    for size, color in ((radius, rim), (radius * 0.7, inside)):
        outline = ring((x, height, s), size, corners, math.radians(turn))
        canvas.face(outline, color, SIGN, n)


def draw_traffic_light(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """Draws a pole with a traffic light, one of its lamps lit."""
    draw_pole(canvas, x, s, rng, 2.6)
    n, lit = canvas.new_instance(TRAFFIC_LIGHT), rng.integers(3)
    canvas.face(across((x - 0.45, x + 0.45), (2.2, 4.05), s), (232, 186, 52), TRAFFIC_LIGHT, n)
    canvas.face(across((x - 0.32, x + 0.32), (2.32, 3.93), s), (26, 30, 28), TRAFFIC_LIGHT, n)
    for lamp, color in enumerate(((60, 235, 140), (255, 190, 40), (255, 50, 40))):
        glow = np.array(color) * (1.0 if lamp == lit else 0.28)
        canvas.disc((x, 2.65 + 0.5 * lamp, s), 0.2, glow, TRAFFIC_LIGHT, n)


_COATS = ((168, 60, 150), (112, 64, 176), (226, 96, 140), (236, 120, 60))


def draw_person(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """Draws a pedestrian in one of four coats."""
    n, tall, step = canvas.new_instance(PERSON), rng.uniform(0.92, 1.06), rng.uniform(0.05, 0.28)
    coat, trousers = np.array(_COATS[rng.integers(len(_COATS))]), rng.uniform(25, 80, 3)
    skin = np.array([216, 172, 140]) * rng.uniform(0.45, 1.05)
    canvas.shade((x - 0.4, x + 0.4), (s - 0.1, s + 0.4), 0.7)
    limbs = (  # centre x at the lower and upper end, lowest y, highest y, half width, colour
        (-step, -0.09, 0.0, 0.9, 0.1, trousers * 0.8),
        (step, 0.09, 0.0, 0.9, 0.1, trousers),
        (step / 2 - 0.32, -0.24, 0.8, 1.42, 0.07, coat * 0.8),
        (0.32 - step / 2, 0.24, 0.8, 1.42, 0.07, coat * 0.8),
        (0, 0, 0.82, 1.46, 0.23, coat),
    )
    for foot, hip, low, high, half, color in limbs:
        lower = [(x + foot + dx, low * tall, s) for dx in (-half, half)]
        upper = [(x + hip + dx, high * tall, s) for dx in (half, -half)]
        canvas.face(lower + upper, color, PERSON, n)
    canvas.disc((x, 1.63 * tall, s), 0.14, skin * 0.35, PERSON, n)
    canvas.disc((x, 1.58 * tall, s), 0.12, skin, PERSON, n)


@dataclass(frozen=True)
class Body:
    """A vehicle's shape, seen from its left: (s, y) from the rear bumper over the roof."""

    kind: int
    width_m: float
    outline: tuple[Range, ...]
    glass: tuple[int, ...]  # which pieces of the outline are panes
    pane: Range | None  # y range of the pane in an upright rear
    windows: tuple[Range, ...]  # s ranges, on the side
    window_y: Range
    wheels: tuple[float, ...]
    wheel_m: float
    paints: tuple[Color, ...]


_PAINTS = ((178, 30, 34), (28, 54, 120), (222, 222, 224), (28, 28, 32), (46, 98, 84))
_SEDAN = Body(
    CAR, 1.85, glass=(2, 4), pane=None, wheels=(0.85, 3.5), wheel_m=0.34,
    outline=((0, 0.3), (0, 0.9), (0.4, 1), (1, 1.5), (2.4, 1.5), (3.2, 1), (4.3, 0.8), (4.35, 0.3)),
    windows=((0.95, 1.7), (1.8, 2.55)), window_y=(1.02, 1.4), paints=_PAINTS,
)  # fmt: skip
_HATCHBACK = dataclasses.replace(
    _SEDAN, glass=(1, 3), wheels=(0.7, 3.1), windows=((0.5, 1.3), (1.4, 2.4)), window_y=(1.08, 1.5),
    outline=((0, 0.32), (0, 1.05), (0.35, 1.6), (2.3, 1.64), (3, 1.08), (3.85, 0.9), (3.95, 0.32)),
)  # fmt: skip
_BUS = Body(
    BUS, 2.5, glass=(), pane=(1.5, 2.6), wheels=(2.6, 8.2), wheel_m=0.5,
    outline=((0, 0.4), (0, 3), (0.2, 3.15), (10.8, 3.15), (11, 3), (11, 0.4)),
    windows=tuple((s, s + 1.35) for s in (0.4, 2, 3.6, 5.2, 6.8, 8.4)), window_y=(1.5, 2.55),
    paints=((226, 178, 30), (206, 44, 40), (232, 132, 30)),
)  # fmt: skip
_TRUCK = Body(
    TRUCK, 2.45, glass=(4,), pane=None, wheels=(1.2, 2.3, 6.4), wheel_m=0.48,
    outline=((0, 0.6), (0, 3.5), (5.4, 3.5), (5.45, 2.7), (6.7, 2.6), (7.2, 1.7), (7.3, 0.5)),
    windows=((6, 6.7),), window_y=(1.7, 2.4),
    paints=((44, 112, 176), (40, 140, 150), (228, 226, 216)),
)  # fmt: skip
CARS, LONG_VEHICLES = (_SEDAN, _HATCHBACK), (_BUS, _TRUCK)


def draw_vehicle(
    canvas: Canvas, x: float, s: float, rng: Generator, body: Body, oncoming: bool
) -> None:
    """Draws a vehicle with its nearer end at s: outline extruded to its width, far to near."""
    n, half, length = canvas.new_instance(body.kind), body.width_m / 2, body.outline[-1][0]
    fill = partial(canvas.face, kind=body.kind, instance=n)
    paint = np.array(body.paints[rng.integers(len(body.paints))]) * rng.uniform(0.85, 1.1)
    dark, black = np.array([46, 54, 66]), (22, 22, 24)
    outline = [(s + (length - a if oncoming else a), y) for a, y in body.outline]
    canvas.shade((x - half - 0.2, x + half + 0.2), (s - 0.3, s + length + 0.3), 0.45)
    pieces = list(enumerate(itertools.pairwise(outline)))
    for i, ((s0, y0), (s1, y1)) in sorted(pieces, key=lambda p: -p[1][0][0] - p[1][1][0]):
        tone = 1.15 if abs(y1 - y0) < abs(s1 - s0) else 0.9
        corners = [(x - half, y0, s0), (x + half, y0, s0), (x + half, y1, s1), (x - half, y1, s1)]
        fill(corners, dark * 1.2 if i in body.glass else paint * tone)
    end, (low, high) = s - 0.01, body.outline[0][1] + np.array([-0.1, 0.25])
    if body.pane is not None:
        fill(across((x - half * 0.86, x + half * 0.86), body.pane, end), dark * 1.2)
    fill(across((x - half, x + half), (low, high - 0.05), end), dark * 0.8)
    for lx in (x - half * 0.82, x + half * 0.82):
        lamp = (250, 246, 220) if oncoming else (214, 24, 28)
        fill(across((lx - 0.17, lx + 0.17), (high, high + 0.22), end), lamp)
        fill(across((lx - 0.13, lx + 0.13), (0, low + 0.05), end), black)
    lateral = canvas.camera.lateral_m(x, s - canvas.camera.s_m)
    if abs(lateral) <= half:
        return
    flank = x - math.copysign(half, lateral)
    fill([(flank, y, a) for a, y in outline], paint * rng.uniform(0.72, 0.92))
    for window in body.windows:
        a, b = (length - w if oncoming else w for w in window)
        fill(along(flank, body.window_y, (s + a, s + b)), dark)
    for radius, color in ((body.wheel_m, black), (body.wheel_m * 0.55, (150, 152, 156))):
        for wheel in body.wheels:
            hub = s + (length - wheel if oncoming else wheel)
            rim = ring((hub, body.wheel_m, flank), radius)
            fill([(x_, y, a) for a, y, x_ in rim], color)
