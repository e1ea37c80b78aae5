"""A canvas that paints 3-D shapes, each with its Vistas class, as a camera sees them.

Each stroke paints the image, label and instances. Coordinates are in metres: x to the right of
the road's middle, y up, s along the road.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CONFIG_PATH = Path(__file__).parent / "vistas_v1.2.json"
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

NEAR_M = 0.6  # nearest depth
HAZE_M = 220.0  # where a third of an object's colour remains

Range = tuple[float, float]
Color = Sequence[float] | np.ndarray  # red, green, blue in 0-255
Point = tuple[float, float, float]  # (x, y, s) in metres
Points = Sequence[Point]


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

    def lateral_m(self, x: Any, depth: Any) -> Any:
        """Returns the offset of the road's `x` to the right of the line of sight at a depth."""
        return x - self.x_m + self.curvature / 2 * depth**2

    def project(self, points: Points) -> np.ndarray:
        """Returns [N, 2] int32 (column, row); points behind the camera move to depth NEAR_M."""
        pixels = []
        for x, y, s in points:  # only a few: faster than arrays
            depth = max(s - self.s_m, NEAR_M)
            column = self.size[1] / 2 + self.focal_px * self.lateral_m(x, depth) / depth
            row = self.horizon_px + self.focal_px * (self.height_m - y) / depth
            pixels.append((round(column), round(row)))
        return np.array(pixels, np.int32)


class Canvas:
    """The image, label and instances of one scene, all painted by each stroke."""

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
        """Paints a 3-D polygon, paler with distance."""
        nearest = min(s for _, _, s in points)
        clear = math.exp(-max(nearest - self.camera.s_m, 0) / HAZE_M)
        hazed = [c * clear + h * (1 - clear) for c, h in zip(color, self.haze, strict=True)]
        self.polygon(self.camera.project(points), hazed, kind, instance)

    def disc(
        self, center: Point, radius_m: float, color: Color, kind: int, instance: int = 0
    ) -> None:
        """Paints a disc that faces the camera."""
        self.face(ring(center, radius_m), color, kind, instance)

    def strip(self, left: Range, right: Range, s: Range, color: Color, kind: int) -> None:
        """Paints a strip along the road between two edges (x, y)."""
        near, far = np.maximum(np.subtract(s, self.camera.s_m), NEAR_M)
        places = self.camera.s_m + np.geomspace(near, far, 24)
        edges = [(*left, a) for a in places] + [(*right, a) for a in places[::-1]]
        if far > near:
            self.polygon(self.camera.project(edges), color, kind)

    def shade(self, x: Range, s: Range, factor: float) -> None:
        """Darkens a rectangle of the ground; its label does not change."""
        corners = [(x[0], 0, s[0]), (x[1], 0, s[0]), (x[1], 0, s[1]), (x[0], 0, s[1])]
        pixels = self.camera.project(corners)
        (left, top), (right, bottom) = np.maximum(pixels.min(0), 0), np.maximum(pixels.max(0), 0)
        part = self.image[top : bottom + 1, left : right + 1]
        if part.size:
            mask = np.zeros(part.shape[:2], np.uint8)
            cv2.fillPoly(mask, [pixels - (left, top)], 1)
            part[mask > 0] = (part[mask > 0] * factor).astype(np.uint8)


def ring(center: Point, radius_m: float, corners: int = 12, turn: float = 0.0) -> Points:
    """Returns the corners of a regular polygon that faces the camera."""
    angles = [turn + math.tau * i / corners for i in range(corners)]
    x, y, s = center
    return [(x + radius_m * math.cos(a), y + radius_m * math.sin(a), s) for a in angles]


def across(x: Range, y: Range, s: float) -> Points:
    """Returns an upright rectangle that faces the camera."""
    return [(x[0], y[0], s), (x[1], y[0], s), (x[1], y[1], s), (x[0], y[1], s)]


def along(x: float, y: Range, s: Range) -> Points:
    """Returns an upright rectangle that runs along the road."""
    return [(x, y[0], s[0]), (x, y[0], s[1]), (x, y[1], s[1]), (x, y[1], s[0])]
