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
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from absl import app, flags
from numpy.random import Generator
from PIL import Image

CONFIG_PATH = Path(__file__).parent / "vistas_v1.2.json"
DEFAULT_COUNTS = {"training": 40, "validation": 8, "testing": 2, "frames": 12}
DRIVE_FRAMES = 40  # then another drive begins
SIZES = ((240, 320), (375, 500), (416, 312), (288, 384), (480, 640), (333, 250))
FRAME_SIZE = (188, 621)  # half of KITTI's

_LABELS = json.loads(CONFIG_PATH.read_text(encoding="utf-8"))["labels"]
_ID = {label["name"]: place for place, label in enumerate(_LABELS)}
ROAD, SIDEWALK = _ID["construction--flat--road"], _ID["construction--flat--sidewalk"]
CURB, BUILDING = _ID["construction--barrier--curb"], _ID["construction--structure--building"]
MARKING, ZEBRA = _ID["marking--general"], _ID["marking--crosswalk-zebra"]
SKY, MOUNTAIN = _ID["nature--sky"], _ID["nature--mountain"]
TERRAIN, VEGETATION = _ID["nature--terrain"], _ID["nature--vegetation"]
POLE, STREET_LIGHT = _ID["object--support--pole"], _ID["object--street-light"]
SIGN, TRAFFIC_LIGHT = _ID["object--traffic-sign--front"], _ID["object--traffic-light"]
CAR, BUS, TRUCK = (_ID[f"object--vehicle--{name}"] for name in ("car", "bus", "truck"))
PERSON, EGO, UNLABELED = _ID["human--person"], _ID["void--ego-vehicle"], _ID["void--unlabeled"]

_TURN = 2 * np.pi
NEAR_M, STREET_M, GROUND_M = 0.6, 170.0, 250.0  # nearest depth; how far street and ground reach
STEP_M = 0.9  # from frame to frame
KERB_M = 0.14  # height of the pavement over the road

Range = tuple[float, float]
Color = Sequence[float] | np.ndarray  # red, green, blue in 0-255
Points = Sequence[Sequence[float]] | np.ndarray  # (x, y, s) in metres


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
    horizon=(0.38, 0.47),
    focal=(0.83, 1.0),
    lane_m=(3.3, 3.9),
    curvature=(0.0, 0.002),
    light=(0.85, 1.1),
    warmth=(0.92, 1.06),
    facades=((168, 92, 74), (206, 188, 152), (150, 150, 152), (120, 78, 62), (196, 196, 190)),
)
VALIDATION = SceneSettings(  # no value in common with training: it measures more than memory
    camera_height_m=(1.9, 2.15),
    horizon=(0.48, 0.53),
    focal=(1.04, 1.12),
    lane_m=(2.95, 3.2),
    curvature=(0.0022, 0.0035),
    light=(0.72, 0.82),
    warmth=(1.08, 1.16),
    facades=((182, 140, 92), (148, 164, 176), (200, 160, 140), (110, 104, 98)),
)


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
        x, y, s = np.asarray(points, float).T
        depth = np.maximum(s - self.s_m, NEAR_M)
        column = self.size[1] / 2 + self.focal_px * self.lateral_m(x, depth) / depth
        row = self.horizon_px + self.focal_px * (self.height_m - y) / depth
        return np.stack([column, row], axis=1).round().astype(np.int32)


class Canvas:
    """Image, label and instances of one scene, painted in the same strokes."""

    def __init__(self, camera: Camera, haze: Color) -> None:
        self.camera, self.haze = camera, np.asarray(haze, float)
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
        red, green, blue = np.clip(color, 0.0, 255.0).tolist()
        cv2.fillPoly(self.image, [pixels], (red, green, blue))
        cv2.fillPoly(self.label, [pixels], kind)
        cv2.fillPoly(self.instance, [pixels], instance)

    def face(self, points: Points, color: Color, kind: int, instance: int = 0) -> None:
        """Paints a polygon in space, paler with distance."""
        depth = max(np.min(points, axis=0)[2] - self.camera.s_m, 0)
        self.polygon(self.camera.project(points), self._hazed(color, depth), kind, instance)

    def disc(
        self,
        center: Sequence[float],
        radius_m: float,
        color: Color,
        kind: int,
        instance: int = 0,
        corners: int = 14,
        turn: float = 0.0,
    ) -> None:
        """Paints a disc, or a regular polygon, that faces the camera."""
        angles = turn + _TURN / corners * np.arange(corners)
        ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
        self.face(np.asarray(center) + radius_m * ring, color, kind, instance)

    def strip(self, left: Range, right: Range, s: Range, color: Color, kind: int) -> None:
        """Paints the ribbon along the road between two edges (x, y)."""
        near, far = np.maximum(np.subtract(s, self.camera.s_m), NEAR_M)
        along = self.camera.s_m + np.geomspace(near, far, 24)
        edges = [(*left, a) for a in along] + [(*right, a) for a in along[::-1]]
        if far > near:
            self.polygon(self.camera.project(edges), color, kind)

    def shade(self, x: Range, s: Range, factor: float) -> None:
        """Darkens a rectangle of the ground; its label stays."""
        mask = np.zeros(self.label.shape, np.uint8)
        corners = [(x[0], 0, s[0]), (x[1], 0, s[0]), (x[1], 0, s[1]), (x[0], 0, s[1])]
        cv2.fillPoly(mask, [self.camera.project(corners)], 1)
        self.image[mask > 0] = (self.image[mask > 0] * factor).astype(np.uint8)

    def _hazed(self, color: Color, depth: float) -> np.ndarray:
        clear = np.exp(-depth / 220)
        return np.asarray(color) * clear + self.haze * (1 - clear)


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


def _draw_leaves(
    canvas: Canvas, center: tuple[float, float, float], half: Range, rng: Generator
) -> None:
    """Foliage: dabs in an ellipse, large and dark ones below, small and light ones above."""
    x, y, s = center
    green = np.array([70, 106, 44]) * rng.uniform(0.75, 1.15) + rng.uniform(-12, 12, 3)
    for share in np.linspace(0, 1, 50):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        dx, dy = reach * np.cos(angle), reach * np.sin(angle)
        tone = 0.75 + 0.35 * dy * share + rng.uniform(-0.25, 0.25)
        radius = half[1] * (0.4 if share < 0.4 else 0.18)
        place = (x + dx * half[0], y + dy * half[1], s)
        canvas.disc(place, radius, green * tone, VEGETATION, corners=9)


def _draw_tree(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    """A tree; the trunk is vegetation too, as in Vistas."""
    height, half = rng.uniform(4.5, 8.5), rng.uniform(0.13, 0.24)
    canvas.shade((x - 2, x + 2), (s - 1, s + 1), 0.75)
    canvas.face(_across((x - half, x + half), (0, height * 0.6), s), (84, 68, 54), VEGETATION)
    _draw_leaves(canvas, (x, height * 0.66, s), (height * 0.28, height * 0.3), rng)


def _draw_bush(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    _draw_leaves(canvas, (x, 0.6, s), (rng.uniform(0.8, 1.8), 0.7), rng)


def _draw_pole(canvas: Canvas, x: float, s: float, rng: Generator, height: float = 6.0) -> None:
    grey, n = np.array([112, 110, 106]) * rng.uniform(0.6, 1.1), canvas.new_instance(POLE)
    canvas.face(_across((x - 0.11, x + 0.11), (0, height), s), grey, POLE, n)
    canvas.face(_across((x - 0.07, x - 0.01), (0, height), s), grey * 1.4, POLE, n)


def _draw_street_light(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    height, tip = rng.uniform(4.8, 6.0), x - np.sign(x) * 1.8
    _draw_pole(canvas, x, s, rng, height)
    n = canvas.new_instance(STREET_LIGHT)
    arm = [(x, height - 0.15, s), (x, height + 0.05, s), (tip, height + 0.5, s)]
    canvas.face([*arm, (tip, height + 0.3, s)], (72, 74, 78), STREET_LIGHT, n)
    lamp = (tip - 0.65, tip + 0.65)
    canvas.face(_across(lamp, (height + 0.3, height + 0.65), s), (56, 58, 62), STREET_LIGHT, n)
    canvas.face(_across(lamp, (height + 0.2, height + 0.34), s), (242, 238, 206), STREET_LIGHT, n)


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
    height, radius = rng.uniform(2.3, 2.9), rng.uniform(0.45, 0.6)
    _draw_pole(canvas, x, s, rng, height)
    n = canvas.new_instance(SIGN)
    corners, turn, rim, inside = _SIGNS[rng.integers(len(_SIGNS))]
    for size, color in ((radius, rim), (radius * 0.7, inside)):
        canvas.disc((x, height, s), size, color, SIGN, n, corners, np.radians(turn))


def _draw_traffic_light(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    _draw_pole(canvas, x, s, rng, 2.6)
    n, lit = canvas.new_instance(TRAFFIC_LIGHT), rng.integers(3)
    canvas.face(_across((x - 0.36, x + 0.36), (2.3, 4.0), s), (208, 202, 174), TRAFFIC_LIGHT, n)
    canvas.face(_across((x - 0.27, x + 0.27), (2.38, 3.92), s), (26, 30, 28), TRAFFIC_LIGHT, n)
    for lamp, color in enumerate(((60, 235, 140), (255, 190, 40), (255, 50, 40))):
        glow = np.array(color) * (1.0 if lamp == lit else 0.28)
        canvas.disc((x, 2.65 + 0.5 * lamp, s), 0.2, glow, TRAFFIC_LIGHT, n)


def _draw_person(canvas: Canvas, x: float, s: float, rng: Generator) -> None:
    n, tall, step = canvas.new_instance(PERSON), rng.uniform(0.92, 1.06), rng.uniform(0.05, 0.28)
    coat, trousers = rng.uniform(30, 225, 3), rng.uniform(25, 110, 3)
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
    pane: Range  # y from, to of the pane in an upright rear
    windows: tuple[Range, ...]  # s from, to in the side
    window_y: Range
    wheels: tuple[float, ...]
    wheel_m: float
    paints: tuple[Color, ...]


_SEDAN = Body(
    CAR, 1.85, ((0, 0.3), (0, 0.92), (0.4, 1), (0.95, 1.48), (2.4, 1.5), (3.2, 1), (4.3, 0.8), (4.35, 0.3)),
    glass=(2, 4), pane=(0, 0), windows=((0.95, 1.7), (1.8, 2.55)), window_y=(1.02, 1.4), wheels=(0.85, 3.5), wheel_m=0.34,
    paints=((178, 30, 34), (28, 54, 120), (222, 222, 224), (28, 28, 32), (120, 124, 130), (46, 98, 84)),
)  # fmt: skip
_HATCHBACK = dataclasses.replace(
    _SEDAN, outline=((0, 0.32), (0, 1.05), (0.35, 1.6), (2.3, 1.64), (3, 1.08), (3.85, 0.9), (3.95, 0.32)),
    glass=(1, 3), windows=((0.5, 1.3), (1.4, 2.4)), window_y=(1.08, 1.5), wheels=(0.7, 3.1),
)  # fmt: skip
_BUS = Body(
    BUS, 2.5, ((0, 0.4), (0, 3), (0.2, 3.15), (10.8, 3.15), (11, 3), (11, 0.4)),
    glass=(), pane=(1.5, 2.6), windows=tuple((a, a + 1.35) for a in (0.4, 2, 3.6, 5.2, 6.8, 8.4)), window_y=(1.5, 2.55),
    wheels=(2.6, 8.2), wheel_m=0.5, paints=((226, 178, 30), (206, 44, 40), (232, 132, 30)),
)  # fmt: skip
_TRUCK = Body(
    TRUCK, 2.45, ((0, 0.6), (0, 3.5), (5.4, 3.5), (5.45, 2.7), (6.7, 2.6), (7.2, 1.7), (7.3, 0.5)),
    glass=(4,), pane=(0, 0), windows=((6, 6.7),), window_y=(1.7, 2.4), wheels=(1.2, 2.3, 6.4), wheel_m=0.48,
    paints=((226, 226, 222), (70, 110, 168), (196, 204, 212)),
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
    fill(_across((x - half * 0.86, x + half * 0.86), body.pane, end), dark * 1.2)
    fill(_across((x - half, x + half), (low, high - 0.05), end), dark * 0.8)
    for lx in (x - half * 0.82, x + half * 0.82):
        lamp = (250, 246, 220) if oncoming else (214, 24, 28)
        fill(_across((lx - 0.17, lx + 0.17), (high, high + 0.22), end), lamp)
        fill(_across((lx - 0.13, lx + 0.13), (0, low + 0.05), end), black)
    lateral = canvas.camera.lateral_m(x, s - canvas.camera.s_m)
    if abs(lateral) <= half:
        return
    flank = x - np.sign(lateral) * half
    fill([(flank, y, a) for a, y in outline], paint * rng.uniform(0.72, 0.92))
    for window in body.windows:
        a, b = (length - w if oncoming else w for w in window)
        fill(_along(flank, body.window_y, (s + a, s + b)), dark)
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for radius, color in ((body.wheel_m, black), (body.wheel_m * 0.55, (150, 152, 156))):
        for wheel in body.wheels:
            hub = s + (length - wheel if oncoming else wheel)
            rim = zip(np.sin(turn) * radius, np.cos(turn) * radius, strict=True)
            fill([(flank, body.wheel_m + dy, hub + ds) for dy, ds in rim], color)


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
    lane_m, lanes = rng.uniform(*settings.lane_m), rng.integers(1, 3, 2)
    edges = np.array([-1, 1]) * (lanes * lane_m + rng.choice([0.5, 2.5], 2))
    walks = edges + np.array([-1, 1]) * rng.uniform(1.8, 3.4, 2)
    crossing = rng.uniform(11, 24)
    crossing_m = crossing if rng.random() < 0.65 else None
    return Street(lane_m, tuple(lanes), tuple(edges), tuple(walks), crossing_m)


def _traffic(rng: Generator, street: Street) -> list[Item]:
    """Returns the vehicles in the lanes; long ones keep to the two lanes in the middle."""
    items = []
    for lane in range(-street.lanes[0], street.lanes[1]):
        s, step = rng.uniform(12, 34), STEP_M if lane >= 0 else -STEP_M
        while s < STREET_M:
            kinds = (_SEDAN, _HATCHBACK, _BUS, _TRUCK)[: 4 if lane in (-1, 0) else 2]
            body = kinds[rng.integers(len(kinds))]
            x = (lane + 0.5) * street.lane_m + rng.uniform(-0.25, 0.25)
            draw = partial(_draw_vehicle, body=body, oncoming=lane < 0)
            items.append(Item(draw, x, s, step))
            s += body.outline[-1][0] + rng.uniform(8, 40)
    return items


def _roadside(rng: Generator, street: Street, side: int, facades: Sequence[Color]) -> list[Item]:
    """Returns what stands on the left (0) or right (1) of the road, parked cars included."""
    out, edge, walk = 2 * side - 1, street.edges_m[side], street.walks_m[side]
    items, crossing = [], street.crossing_m
    s, front, built = (
        rng.uniform(-4, 6),
        walk + out * rng.choice([0.6, 4.0]),
        rng.choice([0.25, 0.85]),
    )
    while s < STREET_M:  # houses, or a garden
        length = rng.uniform(9, 18)
        if rng.random() < built:
            facade = facades[rng.integers(len(facades))]
            draw = partial(_draw_building, facade=facade, length=length)
            items.append(Item(draw, front, s + length))
        else:
            for plant in (_draw_tree, _draw_tree, _draw_bush, _draw_bush):
                items.append(
                    Item(plant, front + out * rng.uniform(1, 8), s + rng.uniform(0, length))
                )
        s += length + rng.choice([0.0, 3.0])
    s = rng.uniform(4, 14)
    while s < STREET_M:  # along the kerb
        kinds = (_draw_pole, _draw_street_light, _draw_sign, _draw_sign, _draw_tree)
        items.append(Item(kinds[rng.integers(len(kinds))], edge + out * 0.7, s))
        s += rng.uniform(5, 14)
    for s in rng.uniform(5, 45, rng.integers(1, 6)):
        items.append(Item(_draw_person, edge + out * rng.uniform(0.9, 1.8), s, 0.1 * out))
    s = rng.uniform(3, 12)
    while s < STREET_M and abs(edge) > street.lanes[side] * street.lane_m + 2:  # parked
        body = (_SEDAN, _HATCHBACK)[rng.integers(2)]
        draw = partial(_draw_vehicle, body=body, oncoming=side == 0)
        if crossing is None or not crossing - 6 < s < crossing + 5:
            items.append(Item(draw, edge - out * 1.25, s))
        s += rng.uniform(5.2, 14)
    if crossing is not None:
        items.append(Item(_draw_traffic_light, edge + out * 0.5, crossing - 0.5))
        if rng.random() < 0.5:
            items.append(Item(_draw_person, rng.uniform(0.4, 0.9) * edge, crossing + 1.5))
    return items


def _draw_backdrop(canvas: Canvas, rng: Generator) -> None:
    """Draws the sky with its clouds, at times mountains, and the far trees below them."""
    height, width = canvas.label.shape
    horizon, hills = int(canvas.camera.horizon_px), rng.random() < 0.6
    overcast, share = rng.random() < 0.3, np.linspace(0, 1, horizon)[:, None, None]
    top = np.array([168, 176, 186] if overcast else [84, 140, 210]) * rng.uniform(0.85, 1.1)
    sky = top * (1 - share) + canvas.haze * share
    cloud = 0.6 * _noise(rng, (horizon, width), (5, 7)) + 0.4 * _noise(
        rng, (horizon, width), (11, 17)
    )
    cover = np.clip((cloud - rng.uniform(0.4, 0.65)) * 4, 0, 0.85)[..., None]
    canvas.image[:horizon] = sky * (1 - cover) + np.array([238, 240, 244]) * cover
    columns, steps = np.linspace(0, width, 81), np.arange(81)
    bottom = canvas.camera.project([(0, 0, canvas.camera.s_m + GROUND_M)])[0, 1] + 1
    for kind, low, high, color in (
        (MOUNTAIN, 0.1, 0.34, (92, 110, 122)),
        (VEGETATION, 0.0, 0.07, (74, 100, 66)),
    ):
        rough = np.interp(steps, np.linspace(0, 80, 9), rng.random(9)) + 0.25 * rng.random(81)
        ridge = horizon - horizon * (low + (high - low) * rough)
        foot = [(width, bottom), (0, bottom)]
        pixels = np.vstack([np.stack([columns, ridge], axis=1), foot]).round().astype(np.int32)
        if kind == VEGETATION or hills:
            canvas.polygon(pixels, np.array(color) * rng.uniform(0.8, 1.15), kind)


def _draw_ground(canvas: Canvas, street: Street, rng: Generator) -> None:
    """Draws meadow, pavements, kerbs, asphalt and markings, then the grain of all of them."""
    (left, right), lane, crossing = street.edges_m, street.lane_m, street.crossing_m
    everything, strip = (canvas.camera.s_m, GROUND_M), canvas.strip
    grass = np.array([104, 128, 62]) + rng.uniform(-18, 18, 3)
    asphalt, paving = rng.uniform(72, 112) * np.array([1, 1, 1.04]), rng.uniform(138, 178, 3)
    strip((-400, 0), (400, 0), everything, grass, TERRAIN)
    strip((left, 0), (right, 0), everything, asphalt, ROAD)
    for edge, walk in zip(street.edges_m, street.walks_m, strict=True):
        kerb = edge + np.sign(edge) * 0.32
        strip((kerb, KERB_M), (walk, KERB_M), everything, np.sort(paving)[::-1], SIDEWALK)
        strip((edge, KERB_M), (kerb, KERB_M), everything, (206, 206, 202), CURB)
        strip((edge, 0), (edge, KERB_M), everything, (142, 142, 140), CURB)
    paint, yellow = rng.uniform(205, 245) * np.array([1, 1, 0.98]), np.array([232, 180, 50])
    inner = yellow if rng.random() < 0.3 else paint
    edges = [-street.lanes[0] * lane + 0.2, street.lanes[1] * lane - 0.2]
    solid = [(x, paint) for x in edges] + [(x, inner) for x in (-0.25, 0.25)] * (
        rng.random() < 0.35
    )
    dividers = [(i * lane, paint) for i in range(1 - street.lanes[0], street.lanes[1])]
    start, on, off = rng.uniform(-6, 0), rng.uniform(2.5, 4), rng.uniform(3, 5)
    for x, color in solid:
        strip((x - 0.13, 0), (x + 0.13, 0), everything, color, MARKING)
    for x, color in dividers:
        for s in np.arange(start, 0 if x == 0 and len(solid) > 2 else STREET_M, on + off):
            strip((x - 0.13, 0), (x + 0.13, 0), (s, s + on), color, MARKING)
    arrow, arrow_m = rng.random() < 0.4, rng.uniform(4, 9)
    if arrow:
        shape = (
            (-0.14, 0),
            (0.14, 0),
            (0.14, 2.4),
            (0.5, 2.4),
            (0, 4.2),
            (-0.5, 2.4),
            (-0.14, 2.4),
        )
        canvas.face([(lane / 2 + x, 0, arrow_m + s) for x, s in shape], paint, MARKING)
    if crossing is not None:
        strip((0.3, 0), (right - 0.3, 0), (crossing - 1.8, crossing - 1.2), paint, MARKING)
        strip((left, 0), (right, 0), (crossing, crossing + 3.2), asphalt, ZEBRA)
        for x in np.arange(left + 0.4, right - 0.7, 1.1):
            strip((x, 0), (x + 0.6, 0), (crossing, crossing + 3.2), paint, ZEBRA)
    _roughen_ground(canvas, rng)


def _roughen_ground(canvas: Canvas, rng: Generator) -> None:
    """Gives each kind of ground its grain, fixed to the ground, and the haze of its distance."""
    camera, (height, width) = canvas.camera, canvas.label.shape
    rows = np.arange(int(camera.horizon_px) + 1, height)[:, None]
    depth = np.minimum(camera.focal_px * camera.height_m / (rows - camera.horizon_px), GROUND_M)
    x = (np.arange(width) - width / 2) * depth / camera.focal_px - camera.lateral_m(0, depth)
    fine, coarse = rng.random((256, 256)) - 0.5, _noise(rng, (256, 256), (64, 64)) - 0.5
    s = depth + camera.s_m + np.zeros_like(x)
    grain = fine[(s * 9).astype(int) % 256, (x * 9).astype(int) % 256] * np.minimum(1, 9 / depth)
    grain += coarse[(s * 3).astype(int) % 256, (x * 5).astype(int) % 256]
    strength = np.full(len(_LABELS), 0.14)
    strength[[TERRAIN, SIDEWALK]] = 0.45, 0.18
    ground = (
        canvas.image[rows[0, 0] :] * (1 + grain * strength[canvas.label[rows[0, 0] :]])[..., None]
    )
    clear = np.exp(-depth / 220)[..., None]
    canvas.image[rows[0, 0] :] = np.clip(ground * clear + canvas.haze * (1 - clear), 0, 255)


def _draw_bonnet(canvas: Canvas, rng: Generator) -> None:
    """Draws the bonnet of the car that carries the camera."""
    height, width = canvas.label.shape
    rise, color = rng.uniform(0.08, 0.14) * height, rng.uniform(30, 150) * np.array([1, 1, 1.06])
    across = np.linspace(-0.05, 1.05, 30)
    for share, tone in ((1.0, 0.55), (0.93, 1.0), (0.6, 1.25), (0.45, 1.0)):
        bow = height - rise * share * (1 - (2 * across - 1) ** 4 * 0.55)
        pixels = np.stack([across * width, bow], axis=1)
        corners = np.vstack([pixels, [(width, height), (0, height)]]).round().astype(np.int32)
        canvas.polygon(corners, color * tone, EGO)


def _develop(image: np.ndarray, settings: SceneSettings, rng: Generator, t: int) -> np.ndarray:
    """Returns the scene as a camera would give it: exposure, colour cast, softness, noise."""
    warmth, height, width = rng.uniform(*settings.warmth), *image.shape[:2]
    gain = rng.uniform(*settings.light) * np.array([warmth**0.5, 1, warmth**-0.5])
    softness, noise = rng.uniform(0.4, 0.8), rng.uniform(2, 7)
    down, right = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - 0.1 * (down**2 + right**2)
    soft = cv2.GaussianBlur(image, (0, 0), softness) * gain * vignette[..., None]
    grain = np.random.default_rng(t).normal(0, noise, image.shape)
    return np.clip(soft + grain, 0, 255).astype(np.uint8)


def _leave_unlabeled(canvas: Canvas, rng: Generator) -> None:
    """Leaves a thin border, or a few spots, without a label, as human annotators do."""
    height, width = canvas.label.shape
    missing = np.zeros(canvas.label.shape, np.uint8)
    if rng.random() < 0.5:
        cv2.rectangle(missing, (0, 0), (width - 1, height - 1), 1, int(rng.integers(1, 5)))
    for _ in range(rng.integers(0, 4)):
        center = int(rng.integers(width)), int(rng.uniform(0.3, 0.8) * height)
        axes = int(rng.uniform(0.01, 0.05) * width), int(rng.uniform(0.01, 0.03) * height)
        cv2.ellipse(missing, center, axes, 0, 0, 360, 1, cv2.FILLED)
    canvas.label[missing > 0], canvas.instance[missing > 0] = UNLABELED, 0


def draw_scene(
    settings: SceneSettings, size: tuple[int, int], seed: Sequence[int], frame: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one scene; the same arguments give the same pixels.

    Args:
      settings: what the scene's look is drawn from.
      size: (height, width) of the image in pixels.
      seed: non-negative numbers that name the scene.
      frame: how many steps of STEP_M the camera has driven into it, 0 or more.

    Returns:
      The image [H, W, 3] uint8 RGB, the label [H, W] uint8 of Vistas v1.2 ids, and the instance
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
    items = _traffic(rng, street)
    for side in (0, 1):
        items += _roadside(rng, street, side, settings.facades)
    places = [(item.s_m + frame * item.step_m, i) for i, item in enumerate(items)]
    for s, i in sorted(places, reverse=True):
        items[i].draw(canvas, items[i].x_m, s, np.random.default_rng([*seed, i]))
    if rng.random() < 0.5:
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
      counts: how many scenes for `training`, `validation` and `testing`, how many `frames`.
      seed: 0 or more; the same seed gives the same files.
      progress: is told of each part that is done.

    Raises:
      ValueError: out_dir holds something, or is a file.
    """
    out_dir = out_dir.resolve()
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(
            f"out_dir must be a new or empty folder; got {out_dir}, which holds something. "
            "Remedy: remove it or choose another --out_dir"
        )
    partial_dir = out_dir.with_name(f"{out_dir.name}.partial-{os.getpid()}")
    try:
        partial_dir.mkdir(parents=True)
        shutil.copyfile(CONFIG_PATH, partial_dir / "config_v1.2.json")
        for place, (split, settings) in enumerate(_SPLITS.items()):
            _write_split(partial_dir / split, settings, counts[split], seed, place)
            progress(f"{split}: {counts[split]} scenes")
        _write_frames(partial_dir / "frames", counts["frames"], seed)
        progress(f"frames: {counts['frames']}")
        os.replace(partial_dir, out_dir)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


_SPLITS = {"training": TRAINING, "validation": VALIDATION, "testing": VALIDATION}


def _write_split(folder: Path, settings: SceneSettings, count: int, seed: int, place: int) -> None:
    kinds = ("images",) if folder.name == "testing" else ("images", "labels", "instances")
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        size, key = SIZES[index % len(SIZES)], make_key(seed, folder.name, index)
        image, label, instance = draw_scene(settings, size, (seed, place, index))
        Image.fromarray(image).save(folder / "images" / f"{key}.jpg", quality=88)
        if len(kinds) > 1:
            indexed = Image.fromarray(label, mode="P")
            indexed.putpalette([c for entry in _LABELS for c in entry["color"]])
            indexed.save(folder / "labels" / f"{key}.png")
            Image.fromarray(instance).save(folder / "instances" / f"{key}.png")


def _write_frames(folder: Path, count: int, seed: int) -> None:
    for index in range(count):
        drive, frame = divmod(index, DRIVE_FRAMES)
        data = f"2011_09_26/2011_09_26_drive_{drive + 1:04d}_sync/image_02/data"
        (folder / data).mkdir(parents=True, exist_ok=True)
        image, _, _ = draw_scene(VALIDATION, FRAME_SIZE, (seed, len(_SPLITS), drive), frame)
        Image.fromarray(image).save(folder / data / f"{frame:010d}.png")


def main(argv: Sequence[str]) -> int:
    """Writes the sample that the flags ask for."""
    return 0
