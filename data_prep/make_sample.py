"""Writes a small scripted street-scene data set in the on-disk format of Mapillary Vistas v1.2.

`python -m data_prep.make_sample --out_dir=D` gives `D/config_v1.2.json`, `D/training` and
`D/validation` with `images/KEY.jpg`, `labels/KEY.png` and `instances/KEY.png`, `D/testing/images`
(no labels, as in Vistas), and in the layout of KITTI raw the frames of a camera that drives on.

A scene is a list of things along a road, drawn in perspective from far to near, image and label in
the same stroke. Coordinates are metres: x to the right of the road's middle, y up, s along it.
"""

import base64
import dataclasses
import hashlib
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from absl import flags
from numpy.random import Generator
from PIL import Image

from mapseg import cli
from mapseg.files import whole_dir

CONFIG_PATH = Path(__file__).parent / "vistas_v1.2.json"
DEFAULT_COUNTS = {"training": 40, "validation": 8, "testing": 2, "frames": 12}
DRIVE_FRAMES = 40  # then another drive begins
SIZES = ((240, 320), (300, 400), (333, 250), (270, 360), (337, 449), (360, 270))
FRAME_SIZE = (188, 621)  # half of KITTI's

LABELS = json.loads(CONFIG_PATH.read_text(encoding="utf-8"))["labels"]
_ID = {label["name"]: place for place, label in enumerate(LABELS)}
ROAD, SIDEWALK = _ID["construction--flat--road"], _ID["construction--flat--sidewalk"]
CURB, BUILDING = _ID["construction--barrier--curb"], _ID["construction--structure--building"]
MARKING, ZEBRA = _ID["marking--general"], _ID["marking--crosswalk-zebra"]
SKY, MOUNTAIN = _ID["nature--sky"], _ID["nature--mountain"]
TERRAIN, VEGETATION = _ID["nature--terrain"], _ID["nature--vegetation"]
POLE, STREET_LIGHT = _ID["object--support--pole"], _ID["object--street-light"]
SIGN, TRAFFIC_LIGHT = _ID["object--traffic-sign--front"], _ID["object--traffic-light"]
CAR, BUS, TRUCK = (_ID[f"object--vehicle--{name}"] for name in ("car", "bus", "truck"))
PERSON, EGO, UNLABELED = _ID["human--person"], _ID["void--ego-vehicle"], _ID["void--unlabeled"]

NEAR_M, STREET_M, GROUND_M = 0.6, 170.0, 250.0  # nearest depth; how far street and ground reach
STEP_M = 0.9  # from frame to frame
KERB_M = 0.14  # height of the pavement over the road
HAZE_M = 220.0  # where a third of a thing's own colour is left
PAINT = (228, 228, 224)

Range = tuple[float, float]
Color = Sequence[float] | np.ndarray  # red, green, blue in 0-255
Point = tuple[float, float, float]  # (x, y, s) in metres
Points = Sequence[Point]


@dataclass(frozen=True)
class SceneSettings:
    """What a scene's look is drawn from: ranges (lowest, highest) and colours."""

    camera_height_m: Range
    horizon: Range  # its row over the image's height
    focal: Range  # focal length over the square root of the image's area
    lane_m: Range
    curvature: Range  # per metre, either way
    light: Range  # exposure
    warmth: Range  # red over blue
    facades: tuple[Color, ...]


TRAINING = SceneSettings(
    camera_height_m=(1.35, 1.8),
    horizon=(0.42, 0.5),
    focal=(0.95, 1.12),
    lane_m=(3.0, 3.5),
    curvature=(0.0, 0.002),
    light=(0.85, 1.1),
    warmth=(0.92, 1.06),
    facades=((168, 92, 74), (206, 188, 152), (150, 150, 152), (120, 78, 62), (196, 196, 190)),
)
VALIDATION = SceneSettings(  # no value in common with training: it measures more than memory
    camera_height_m=(1.85, 2.05),
    horizon=(0.51, 0.55),
    focal=(1.14, 1.22),
    lane_m=(2.7, 2.95),
    curvature=(0.0022, 0.0035),
    light=(0.76, 0.83),
    warmth=(1.07, 1.12),
    facades=((184, 136, 96), (156, 164, 172), (196, 164, 146), (142, 96, 84)),
)
SPLITS = {"training": TRAINING, "validation": VALIDATION, "testing": VALIDATION}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along a road of constant curvature."""

    size: tuple[int, int]
    focal_px: float
    horizon_px: float
    height_m: float
    x_m: float
    s_m: float
    curvature: float

    def lateral_m(self, x: float | np.ndarray, depth: float | np.ndarray) -> float | np.ndarray:
        """Returns how far to the right of the line of sight the road's `x` is at a depth."""
        return x - self.x_m + self.curvature / 2 * depth**2

    def project(self, points: Points) -> np.ndarray:
        """Returns [N, 2] int32 column and row; what lies behind the camera moves to NEAR_M."""
        pixels = []
        for x, y, s in points:  # a handful: faster than arrays
            depth = max(s - self.s_m, NEAR_M)
            column = self.size[1] / 2 + self.focal_px * self.lateral_m(x, depth) / depth
            row = self.horizon_px + self.focal_px * (self.height_m - y) / depth
            pixels.append((round(column), round(row)))
        return np.array(pixels, np.int32)


class Canvas:
    """Image, label and instances of one scene, painted in the same strokes."""

    def __init__(self, camera: Camera, haze: Color) -> None:
        self.camera, self.haze = camera, haze
        self.image = np.zeros((*camera.size, 3), np.uint8)
        self.label = np.full(camera.size, SKY, np.uint8)
        self.instance = np.zeros(camera.size, np.uint8)
        self._count: Counter[int] = Counter()

    def new_instance(self, kind: int) -> int:
        """Returns the next free instance number of a class."""
        self._count[kind] += 1
        return self._count[kind] - 1

    def polygon(self, pixels: np.ndarray, color: Color, kind: int, instance: int = 0) -> None:
        """Paints a polygon of [N, 2] int32 columns and rows."""
        cv2.fillPoly(self.image, [pixels], [min(max(float(c), 0.0), 255.0) for c in color])
        cv2.fillPoly(self.label, [pixels], kind)
        cv2.fillPoly(self.instance, [pixels], instance)

    def face(self, points: Points, color: Color, kind: int, instance: int = 0) -> None:
        """Paints a polygon in space, paler with distance."""
        nearest = min(s for _, _, s in points)
        clear = math.exp(-max(nearest - self.camera.s_m, 0) / HAZE_M)
        hazed = [c * clear + h * (1 - clear) for c, h in zip(color, self.haze, strict=True)]
        self.polygon(self.camera.project(points), hazed, kind, instance)

    def disc(
        self, center: Point, radius_m: float, color: Color, kind: int, instance: int = 0
    ) -> None:
        """Paints a disc that faces the camera."""
        self.face(_ring(center, radius_m), color, kind, instance)

    def strip(self, left: Range, right: Range, s: Range, color: Color, kind: int) -> None:
        """Paints the ribbon along the road between two edges (x, y)."""
        near, far = np.maximum(np.subtract(s, self.camera.s_m), NEAR_M)
        along = self.camera.s_m + np.geomspace(near, far, 24)
        edges = [(*left, a) for a in along] + [(*right, a) for a in along[::-1]]
        if far > near:
            self.polygon(self.camera.project(edges), color, kind)

    def shade(self, x: Range, s: Range, factor: float) -> None:
        """Darkens a rectangle of the ground; its label stays."""
        corners = [(x[0], 0, s[0]), (x[1], 0, s[0]), (x[1], 0, s[1]), (x[0], 0, s[1])]
        pixels = self.camera.project(corners)
        (left, top), (right, bottom) = np.maximum(pixels.min(0), 0), np.maximum(pixels.max(0), 0)
        part = self.image[top : bottom + 1, left : right + 1]
        if part.size:
            mask = np.zeros(part.shape[:2], np.uint8)
            cv2.fillPoly(mask, [pixels - (left, top)], 1)
            part[mask > 0] = (part[mask > 0] * factor).astype(np.uint8)


def _ring(center: Point, radius_m: float, corners: int = 12, turn: float = 0.0) -> Points:
    """Returns the corners of a regular polygon that faces the camera."""
    angles = [turn + math.tau * i / corners for i in range(corners)]
    x, y, s = center
    return [(x + radius_m * math.cos(a), y + radius_m * math.sin(a), s) for a in angles]


def _across(x: Range, y: Range, s: float) -> Points:
    """Returns an upright rectangle that faces the camera."""
    return [(x[0], y[0], s), (x[1], y[0], s), (x[1], y[1], s), (x[0], y[1], s)]


def _along(x: float, y: Range, s: Range) -> Points:
    """Returns an upright rectangle that runs along the road."""
    return [(x, y[0], s[0]), (x, y[0], s[1]), (x, y[1], s[1]), (x, y[1], s[0])]


def _noise(rng: Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Returns [H, W] float32, about 0 to 1, smooth over so many cells."""
    coarse = rng.random(cells, np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


# Things on the street. Each draws itself at (x, s) from a generator of its own, and so looks the
# same in every frame of a drive.


def _draw_building(
    canvas: Canvas, x: float, s: float, rng: Generator, facade: Color, length: float
) -> None:
    """A house that ends at s: the front towards the road, one side towards the camera."""
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
    canvas.face(_across((x, back), (0, top), start), flank, BUILDING)
    canvas.face(_along(x, (0, top), (start, s)), front, BUILDING)
    canvas.face(_along(x, (top - 0.5, top), (start, s)), front * 0.7, BUILDING)
    canvas.face(_along(x, (0, 0.9), (start, s)), front * 0.75, BUILDING)
    for floor in range(floors):
        low, high = floor * floor_m + 1.1, floor * floor_m + 2.5
        for i, a in enumerate(np.arange(s - 2.2, start + 0.5, -2.6)):
            frame = _along(x, (low - 0.2, high + 0.2), (a - 0.2, a + 1.6))
            canvas.face(frame, front * 1.2, BUILDING)
            canvas.face(_along(x, (low, high), (a, a + 1.4)), glass[floor, i], BUILDING)
        for i, b in enumerate((1.2, 4.0, 6.6)):
            pane = _across((x + side * b, x + side * (b + 1.3)), (low, high), start)
            canvas.face(pane, glass[floor, -1 - i] * 0.8, BUILDING)


def _draw_leaves(canvas: Canvas, center: Point, half: Range, rng: Generator) -> None:
    """Foliage: dabs in an ellipse, first large ones, then as many small ones as can be seen."""
    x, y, s = center
    green = np.array([70, 106, 44]) * rng.uniform(0.75, 1.15) + rng.uniform(-12, 12, 3)
    size_px = half[1] * canvas.camera.focal_px / max(s - canvas.camera.s_m, NEAR_M)
    for i, (angle, reach, tone) in enumerate(rng.random((60, 3))[: 16 + int(size_px)].tolist()):
        dx, dy = [math.sqrt(reach) * turn(math.tau * angle) for turn in (math.cos, math.sin)]
        large, light = i < 20, 0.5 + 0.5 * tone + (0.2 if i < 20 else 0.35) * dy
        place = (x + dx * half[0], y + dy * half[1], s)
        canvas.disc(place, half[1] * (0.4 if large else 0.18), green * light, VEGETATION)


def _draw_tree(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """A tree; the trunk is vegetation too, as in Vistas."""
    height, half = rng.uniform(4.5, 8.5), rng.uniform(0.13, 0.24)
    canvas.shade((x - 2, x + 2), (s - 1, s + 1), 0.75)
    canvas.face(_across((x - half, x + half), (0, height * 0.6), s), (84, 68, 54), VEGETATION)
    _draw_leaves(canvas, (x, height * 0.66, s), (height * 0.28, height * 0.3), rng)


def _draw_bush(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    _draw_leaves(canvas, (x, 0.6, s), (rng.uniform(0.8, 1.8), 0.7), rng)


def _draw_pole(canvas: Canvas, x: float, s: float, rng: Generator, height: float = 6.0) -> None:
    grey, n = np.array([66, 68, 72]) * rng.uniform(0.85, 1.1), canvas.new_instance(POLE)
    canvas.face(_across((x - 0.14, x + 0.14), (0, height), s), grey, POLE, n)
    canvas.face(_across((x - 0.09, x - 0.02), (0, height), s), grey * 1.4, POLE, n)


def _draw_street_light(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    height, tip = rng.uniform(4.2, 5.4), x - np.sign(x) * 1.8
    _draw_pole(canvas, x, s, rng, height)
    n = canvas.new_instance(STREET_LIGHT)
    arm = [(x, height - 0.2, s), (x, height + 0.05, s), (tip, height + 0.5, s)]
    canvas.face([*arm, (tip, height + 0.3, s)], (72, 74, 78), STREET_LIGHT, n)
    lamp = (tip - 0.8, tip + 0.8)
    canvas.face(_across(lamp, (height + 0.35, height + 0.7), s), (56, 58, 62), STREET_LIGHT, n)
    canvas.face(_across(lamp, (height + 0.1, height + 0.38), s), (250, 240, 190), STREET_LIGHT, n)


# (corners, turn in degrees, rim, inside): yield, ban, order, stop, information, warning.
_SIGNS: tuple[tuple[int, float, Color, Color], ...] = (
    (3, 90, (196, 30, 36), (238, 236, 230)),
    (24, 0, (200, 28, 34), (240, 238, 232)),
    (24, 0, (225, 228, 232), (28, 84, 176)),
    (8, 22.5, (236, 234, 230), (190, 24, 32)),
    (4, 45, (228, 230, 234), (24, 92, 180)),
    (4, 0, (36, 34, 30), (244, 190, 30)),
)


def _draw_sign(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    height, radius = rng.uniform(2.2, 2.7), rng.uniform(0.55, 0.7)
    _draw_pole(canvas, x, s, rng, height)
    n = canvas.new_instance(SIGN)
    corners, turn, rim, inside = _SIGNS[rng.integers(len(_SIGNS))]
    for size, color in ((radius, rim), (radius * 0.7, inside)):
        ring = _ring((x, height, s), size, corners, math.radians(turn))
        canvas.face(ring, color, SIGN, n)


def _draw_traffic_light(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    _draw_pole(canvas, x, s, rng, 2.6)
    n, lit = canvas.new_instance(TRAFFIC_LIGHT), rng.integers(3)
    canvas.face(_across((x - 0.45, x + 0.45), (2.2, 4.05), s), (232, 186, 52), TRAFFIC_LIGHT, n)
    canvas.face(_across((x - 0.32, x + 0.32), (2.32, 3.93), s), (26, 30, 28), TRAFFIC_LIGHT, n)
    for lamp, color in enumerate(((60, 235, 140), (255, 190, 40), (255, 50, 40))):
        glow = np.array(color) * (1.0 if lamp == lit else 0.28)
        canvas.disc((x, 2.65 + 0.5 * lamp, s), 0.2, glow, TRAFFIC_LIGHT, n)


_COATS = ((168, 60, 150), (112, 64, 176), (226, 96, 140), (236, 120, 60))


def _draw_person(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    n, tall, step = canvas.new_instance(PERSON), rng.uniform(0.92, 1.06), rng.uniform(0.05, 0.28)
    coat, trousers = np.array(_COATS[rng.integers(len(_COATS))]), rng.uniform(25, 80, 3)
    skin = np.array([216, 172, 140]) * rng.uniform(0.45, 1.05)
    canvas.shade((x - 0.4, x + 0.4), (s - 0.1, s + 0.4), 0.7)
    limbs = (  # middle at the lower end, at the upper end, y from, to, half width, colour
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
    pane: Range | None  # y from, to of the pane in an upright rear
    windows: tuple[Range, ...]  # s from, to in the side
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


def _draw_vehicle(
    canvas: Canvas, x: float, s: float, rng: Generator, body: Body, oncoming: bool
) -> None:
    """A vehicle whose nearer end is at s: its outline drawn out to its width, far pieces first."""
    n, half, length = canvas.new_instance(body.kind), body.width_m / 2, body.outline[-1][0]
    fill = partial(canvas.face, kind=body.kind, instance=n)
    paint = np.array(body.paints[rng.integers(len(body.paints))]) * rng.uniform(0.85, 1.1)
    dark, black = np.array([46, 54, 66]), (22, 22, 24)
    outline = [(s + (length - a if oncoming else a), y) for a, y in body.outline]
    canvas.shade((x - half - 0.2, x + half + 0.2), (s - 0.3, s + length + 0.3), 0.45)
    pieces = [(i, *outline[i : i + 2]) for i in range(len(outline) - 1)]
    for i, (s0, y0), (s1, y1) in sorted(pieces, key=lambda p: -p[1][0] - p[2][0]):
        tone = 1.15 if abs(y1 - y0) < abs(s1 - s0) else 0.9
        corners = [(x - half, y0, s0), (x + half, y0, s0), (x + half, y1, s1), (x - half, y1, s1)]
        fill(corners, dark * 1.2 if i in body.glass else paint * tone)
    end, (low, high) = s - 0.01, body.outline[0][1] + np.array([-0.1, 0.25])
    if body.pane is not None:
        fill(_across((x - half * 0.86, x + half * 0.86), body.pane, end), dark * 1.2)
    fill(_across((x - half, x + half), (low, high - 0.05), end), dark * 0.8)
    for lx in (x - half * 0.82, x + half * 0.82):
        lamp = (250, 246, 220) if oncoming else (214, 24, 28)
        fill(_across((lx - 0.17, lx + 0.17), (high, high + 0.22), end), lamp)
        fill(_across((lx - 0.13, lx + 0.13), (0, low + 0.05), end), black)
    lateral = canvas.camera.lateral_m(x, s - canvas.camera.s_m)
    if abs(lateral) <= half:
        return
    flank = x - math.copysign(half, lateral)
    fill([(flank, y, a) for a, y in outline], paint * rng.uniform(0.72, 0.92))
    for window in body.windows:
        a, b = (length - w if oncoming else w for w in window)
        fill(_along(flank, body.window_y, (s + a, s + b)), dark)
    for radius, color in ((body.wheel_m, black), (body.wheel_m * 0.55, (150, 152, 156))):
        for wheel in body.wheels:
            hub = s + (length - wheel if oncoming else wheel)
            rim = _ring((hub, body.wheel_m, flank), radius)
            fill([(x_, y, a) for a, y, x_ in rim], color)


class Item(NamedTuple):
    """Something on the street: how it draws itself, where, and its way from frame to frame."""

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


def _build_street(rng: Generator, settings: SceneSettings) -> Street:
    lane_m, (left, right) = rng.uniform(*settings.lane_m), (1 + (rng.random(2) < 0.3)).tolist()
    shoulders, walks = rng.choice([0.4, 0.4, 2.5], 2), rng.uniform(2, 3.6, 2)  # 2.5 m: cars park
    edges = -left * lane_m - shoulders[0], right * lane_m + shoulders[1]
    crossing_m = rng.uniform(8, 20)
    return Street(
        lane_m=lane_m,
        lanes=(left, right),
        edges_m=edges,
        walks_m=(edges[0] - walks[0], edges[1] + walks[1]),
        crossing_m=crossing_m if rng.random() < 0.85 else None,
    )


def _places(rng: Generator, first: Range, gap: Range) -> Iterator[float]:
    """Yields places along the street, so far from each other."""
    s = rng.uniform(*first)
    while s < STREET_M:
        yield s
        s += rng.uniform(*gap)


def _traffic(rng: Generator, street: Street) -> Iterator[Item]:
    """Yields the vehicles in the lanes; long ones keep to the two lanes in the middle."""
    for lane in range(-street.lanes[0], street.lanes[1]):
        kinds = (_SEDAN, _HATCHBACK, _BUS, _TRUCK)[: 4 if lane in (-1, 0) else 2]
        for s in _places(rng, (10, 26), (18, 44)):
            body = kinds[rng.integers(len(kinds))]
            draw = partial(_draw_vehicle, body=body, oncoming=lane < 0)
            x = (lane + 0.5) * street.lane_m + rng.uniform(-0.25, 0.25)
            yield Item(draw, x, s, STEP_M if lane >= 0 else -STEP_M)


def _houses(rng: Generator, front: float, facades: Sequence[Color]) -> Iterator[Item]:
    """Yields the houses behind one pavement, with gardens between them."""
    out, built = np.sign(front), rng.choice([0.3, 0.8])
    for s in _places(rng, (-4, 6), (18.5, 24)):
        if rng.random() < built:
            facade, length = facades[rng.integers(len(facades))], rng.uniform(15, 18)
            draw = partial(_draw_building, facade=facade, length=length)
            yield Item(draw, front, s + length)
        else:
            for plant in (_draw_tree, _draw_bush, _draw_tree, _draw_bush):
                yield Item(plant, front + out * rng.uniform(1, 8), s + rng.uniform(0, 18))


def _kerbside(rng: Generator, street: Street, side: int) -> Iterator[Item]:
    """Yields what stands along the left (0) or right (1) kerb, and who walks there."""
    out, edge, crossing = 2 * side - 1, street.edges_m[side], street.crossing_m
    kinds = (_draw_pole, _draw_street_light, _draw_sign, _draw_sign, _draw_tree)
    for s in _places(rng, (4, 9), (4, 11)):
        yield Item(kinds[rng.integers(len(kinds))], edge + out * 0.8, s)
    for s in _places(rng, (4, 9), (3, 16)):
        yield Item(_draw_person, edge + out * rng.uniform(0.9, 1.8), s, 0.1 * out)
    if abs(edge) > street.lanes[side] * street.lane_m + 2:
        for s in _places(rng, (3, 12), (5.2, 14)):
            body = (_SEDAN, _HATCHBACK)[rng.integers(2)]
            if crossing is None or not crossing - 6 < s < crossing + 5:
                draw = partial(_draw_vehicle, body=body, oncoming=side == 0)
                yield Item(draw, edge - out * 1.25, s)
    if crossing is not None:
        yield Item(_draw_traffic_light, edge + out * 0.5, crossing - 0.5)
        if rng.random() < 0.5:
            yield Item(_draw_person, edge * rng.uniform(0.7, 0.95), crossing + 1.5)


def _draw_backdrop(canvas: Canvas, rng: Generator) -> None:
    """Draws the sky with its clouds, at times mountains, and the far trees below them."""
    camera, width = canvas.camera, canvas.camera.size[1]
    horizon = int(camera.horizon_px)
    top = np.array([[84, 140, 210], [168, 176, 186]][rng.integers(2)]) * rng.uniform(0.85, 1.1)
    clouds = _noise(rng, (horizon, width), (5, 7)) + _noise(rng, (horizon, width), (11, 17))
    cover = np.clip(clouds * 2 - rng.uniform(1.6, 2.6), 0, 0.85)[..., None]
    down = np.linspace(0, 1, horizon)[:, None, None]
    sky = top * (1 - down) + canvas.haze * down
    canvas.image[:horizon] = sky * (1 - cover) + np.array([238, 240, 244]) * cover
    columns, foot = np.linspace(0, width, 81), camera.project([(0, 0, camera.s_m + GROUND_M)])[0, 1]
    ranges = ((MOUNTAIN, 0.15, 0.3, (104, 112, 146)), (VEGETATION, 0.0, 0.07, (74, 100, 66)))
    for kind, low, high, color in ranges[rng.integers(2) :]:
        peaks = np.interp(columns, np.linspace(0, width, 9), rng.random(9)) + rng.random(81) / 4
        crest = np.stack([columns, horizon - horizon * (low + high * peaks)], axis=1)
        pixels = np.vstack([crest, [(width, foot), (0, foot)]]).round().astype(np.int32)
        canvas.polygon(pixels, np.array(color) * rng.uniform(0.8, 1.15), kind)


def _draw_ground(canvas: Canvas, street: Street, rng: Generator) -> None:
    """Draws meadow, road, kerbs and pavements."""
    strip, all_s = canvas.strip, (canvas.camera.s_m, canvas.camera.s_m + GROUND_M)
    asphalt, paving = rng.uniform(72, 106), np.array([184, 158, 146]) + rng.uniform(-14, 14)
    grass = np.array([140, 170, 74]) + rng.uniform(-18, 18, 3)
    strip((-400, 0), (400, 0), all_s, grass, TERRAIN)
    strip((street.edges_m[0], 0), (street.edges_m[1], 0), all_s, [asphalt] * 3, ROAD)
    for edge, walk in zip(street.edges_m, street.walks_m, strict=True):
        kerb = edge + np.sign(edge) * 0.45
        strip((kerb, KERB_M), (walk, KERB_M), all_s, paving, SIDEWALK)
        strip((edge, KERB_M), (kerb, KERB_M), all_s, (212, 192, 124), CURB)
        strip((edge, 0), (edge, KERB_M), all_s, (150, 134, 84), CURB)
    _draw_markings(canvas, street, rng)
    if street.crossing_m is not None:
        _draw_crossing(canvas, street.edges_m, street.crossing_m, asphalt)
    _roughen_ground(canvas, rng)


def _draw_markings(canvas: Canvas, street: Street, rng: Generator) -> None:
    """Draws the edge lines, a dashed or a solid double line in the middle, at times an arrow."""

    def line(x: float, s: Range, color: Color = PAINT) -> None:
        canvas.strip((x - 0.14, 0), (x + 0.14, 0), s, color, MARKING)

    lane, all_s = street.lane_m, (canvas.camera.s_m, canvas.camera.s_m + GROUND_M)
    is_double, is_yellow, has_arrow = rng.random(3) < (0.35, 0.4, 0.6)
    on, period, arrow_s = rng.uniform(2.5, 4), rng.uniform(6, 8), rng.uniform(3, 9)
    for x in (0.2 - street.lanes[0] * lane, street.lanes[1] * lane - 0.2):
        line(x, all_s)
    for divider in range(1 - street.lanes[0], street.lanes[1]):
        if divider == 0 and is_double:
            for x in (-0.26, 0.26):
                line(x, all_s, (232, 180, 50) if is_yellow else PAINT)
        else:
            for s in np.arange(-rng.uniform(0, period), STREET_M, period):
                line(divider * lane, (s, s + on))
    if has_arrow and (street.crossing_m is None or arrow_s < street.crossing_m - 7):
        shaft, head = [(0.14, 0), (0.14, 2.4)], [(0.5, 2.4), (0, 4.2), (-0.5, 2.4)]
        shape = [*shaft, *head, *[(-x, s) for x, s in shaft[::-1]]]
        canvas.face([(lane / 2 + x, 0, arrow_s + s) for x, s in shape], PAINT, MARKING)


def _draw_crossing(canvas: Canvas, edges: Range, start: float, asphalt: float) -> None:
    """Draws the stop line and the zebra crossing, whose label takes in its gaps, as in Vistas."""
    (left, right), across = edges, (start, start + 4)
    canvas.strip((0.3, 0), (right - 0.3, 0), (start - 1.8, start - 1.2), PAINT, MARKING)
    canvas.strip((left, 0), (right, 0), across, [asphalt] * 3, ZEBRA)
    for x in np.arange(left + 0.4, right - 0.7, 1.1):
        canvas.strip((x, 0), (x + 0.6, 0), across, PAINT, ZEBRA)


def _roughen_ground(canvas: Canvas, rng: Generator) -> None:
    """Gives the ground its grain, which stays in place as the camera moves, and its haze."""
    camera, width, first = canvas.camera, canvas.camera.size[1], int(canvas.camera.horizon_px) + 1
    ground, rows = canvas.image[first:], np.arange(first, camera.size[0])[:, None]
    depth = np.minimum(camera.focal_px * camera.height_m / (rows - camera.horizon_px), GROUND_M)
    x = (np.arange(width) - width / 2) * depth / camera.focal_px - camera.lateral_m(0, depth)
    s = np.broadcast_to(depth + camera.s_m, x.shape)
    fine, coarse = rng.random((256, 256)) - 0.5, _noise(rng, (256, 256), (64, 64)) - 0.5
    grain = fine[(s * 9).astype(int) % 256, (x * 9).astype(int) % 256] * np.minimum(1, 9 / depth)
    grain += coarse[(s * 3).astype(int) % 256, (x * 5).astype(int) % 256]
    strength = np.full(len(LABELS), 0.14)
    strength[[TERRAIN, SIDEWALK]] = 0.45, 0.18
    clear = np.exp(-depth / HAZE_M)[..., None]
    rough = ground * (1 + grain * strength[canvas.label[first:]])[..., None]
    ground[:] = np.clip(rough * clear + canvas.haze * (1 - clear), 0, 255)


def _draw_bonnet(canvas: Canvas, rng: Generator) -> None:
    """Draws the bonnet of the car that carries the camera."""
    height, width = canvas.camera.size
    rise, paint = rng.uniform(0.09, 0.15) * height, np.array([36, 52, 96]) * rng.uniform(0.8, 1.1)
    across = np.linspace(-0.05, 1.05, 30)
    for share, tone in ((1.0, 0.55), (0.93, 1.0), (0.6, 1.25), (0.45, 1.0)):
        bow = height - rise * share * (1 - 0.55 * (2 * across - 1) ** 4)
        outline = np.vstack([np.stack([across * width, bow], 1), [(width, height), (0, height)]])
        canvas.polygon(outline.round().astype(np.int32), paint * tone, EGO)


def _leave_unlabeled(canvas: Canvas, rng: Generator) -> None:
    """Leaves a thin border, and a few spots, without a label, as annotators do."""
    height, width = canvas.camera.size
    missing = np.zeros((height, width), np.uint8)
    if rng.random() < 0.5:
        cv2.rectangle(missing, (0, 0), (width - 1, height - 1), 1, int(rng.integers(1, 5)))
    for _ in range(rng.integers(1, 4)):
        center = int(rng.integers(width)), int(rng.uniform(0.3, 0.8) * height)
        axes = int(rng.uniform(0.01, 0.05) * width), int(rng.uniform(0.01, 0.03) * height)
        cv2.ellipse(missing, center, axes, 0, 0, 360, 1, cv2.FILLED)
    canvas.label[missing > 0], canvas.instance[missing > 0] = UNLABELED, 0


def _develop(image: np.ndarray, settings: SceneSettings, rng: Generator, frame: int) -> np.ndarray:
    """Returns the scene as a camera would give it: exposure, colour cast, softness, noise."""
    warmth, (height, width) = rng.uniform(*settings.warmth), image.shape[:2]
    gain = rng.uniform(*settings.light) * np.array([warmth**0.5, 1, warmth**-0.5])
    down, right = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - 0.1 * (down**2 + right**2)[..., None]
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8)) * gain * vignette
    noise = np.random.default_rng([int(rng.integers(2**32)), frame])
    return np.clip(soft + noise.normal(0, rng.uniform(2, 7), image.shape), 0, 255).astype(np.uint8)


def draw_scene(
    settings: SceneSettings, size: tuple[int, int], seed: Sequence[int], frame: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one scene; the same arguments give the same pixels.

    Args:
      settings: what the scene's look is drawn from.
      size: (height, width) of the image in pixels.
      seed: numbers of 0 or more that name the scene.
      frame: how many steps of STEP_M the camera has driven into it, 0 or more.

    Returns:
      The image [H, W, 3] uint8 RGB, the label [H, W] uint8 of Vistas v1.2 ids, and the instances
      [H, W] uint16, label * 256 + number.
    """
    rng = np.random.default_rng(seed)
    street = _build_street(rng, settings)
    camera = Camera(
        size=size,
        focal_px=rng.uniform(*settings.focal) * np.sqrt(size[0] * size[1]),
        horizon_px=round(rng.uniform(*settings.horizon) * size[0]),
        height_m=rng.uniform(*settings.camera_height_m),
        x_m=street.lane_m / 2 + rng.uniform(-0.3, 0.3),
        s_m=STEP_M * frame,
        curvature=rng.uniform(*settings.curvature) * rng.choice([-1, 1]),
    )
    canvas = Canvas(camera, haze=np.array([206, 214, 222]) * rng.uniform(0.92, 1.05))
    _draw_backdrop(canvas, rng)
    _draw_ground(canvas, street, rng)
    items = [*_traffic(rng, street)]
    for side, walk in enumerate(street.walks_m):
        front = walk + np.sign(walk) * rng.choice([2.5, 6.0])
        items += [*_houses(rng, front, settings.facades), *_kerbside(rng, street, side)]
    far_to_near = sorted(((i.s_m + frame * i.step_m, n) for n, i in enumerate(items)), reverse=True)
    for s, n in far_to_near:
        items[n].draw(canvas, items[n].x_m, s, np.random.default_rng([*seed, n]))
    if rng.random() < 0.6:
        _draw_bonnet(canvas, rng)
    image = _develop(canvas.image, settings, rng, frame)
    _leave_unlabeled(canvas, rng)
    return image, canvas.label, canvas.label * np.uint16(256) + canvas.instance


def make_key(seed: int, split: str, index: int) -> str:
    """Returns the 22 characters that name a sample; some begin with - or _, as in Vistas."""
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()[:16]
    key = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return key if index % 4 else "-_"[index // 4 % 2] + key[1:]


def write_sample(
    out_dir: Path, counts: Mapping[str, int], seed: int, progress: Callable[[str], None]
) -> None:
    """Writes the data set; it appears whole or not at all.

    Args:
      out_dir: a folder that is empty or does not exist.
      counts: how many scenes of `training`, `validation` and `testing`, how many `frames`.
      seed: 0 or more; the same seed gives the same files.
      progress: is told what has been written.

    Raises:
      ValueError: out_dir is not empty.
    """
    out_dir = out_dir.resolve()
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise ValueError(
            f"out_dir must be new or an empty folder; got {out_dir}, which is not empty. "
            "Remedy: choose another --out_dir, or remove that one"
        )
    with whole_dir(out_dir) as folder:
        shutil.copyfile(CONFIG_PATH, folder / "config_v1.2.json")
        for part, (split, settings) in enumerate(SPLITS.items()):
            kinds = ("images", "labels", "instances") if split != "testing" else ("images",)
            for kind in kinds:
                (folder / split / kind).mkdir(parents=True)
            for index in range(counts[split]):
                scene = draw_scene(settings, SIZES[index % len(SIZES)], (seed, part, index))
                _write_scene(folder / split, kinds, make_key(seed, split, index), scene)
            progress(f"{split}: {counts[split]} scenes")
        for index in range(counts["frames"]):
            drive, frame = divmod(index, DRIVE_FRAMES)
            image, _, _ = draw_scene(VALIDATION, FRAME_SIZE, (seed, len(SPLITS), drive), frame)
            data = f"2011_09_26/2011_09_26_drive_{drive + 1:04d}_sync/image_02/data"
            (folder / "frames" / data).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / "frames" / data / f"{frame:010d}.png")
        progress(f"frames: {counts['frames']}")


def _write_scene(
    folder: Path, kinds: Sequence[str], key: str, scene: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    image, label, instances = scene
    Image.fromarray(image).save(folder / "images" / f"{key}.jpg", quality=88)
    if "labels" in kinds:
        indexed = Image.fromarray(label).convert("P")
        indexed.putpalette([value for entry in LABELS for value in entry["color"]])
        indexed.save(folder / "labels" / f"{key}.png")
        Image.fromarray(instances).save(folder / "instances" / f"{key}.png")


def _work_on(values: flags.FlagValues) -> int:
    out_dir = Path(cli.required(values, "out_dir"))
    counts = {name: values[name].value for name in DEFAULT_COUNTS}
    write_sample(out_dir, counts, values.seed, cli.report)
    print(f"{out_dir}: finished")
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("out_dir", "", "where the data set goes", flag_values=values)
    for name, count in DEFAULT_COUNTS.items():
        text = f"how many scenes of {name}" if name in SPLITS else "how many frames of a drive"
        flags.DEFINE_integer(name, count, text, lower_bound=0, flag_values=values)
    flags.DEFINE_integer("seed", 1, "another seed, other scenes", lower_bound=0, flag_values=values)
    return cli.run(_work_on, values, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
