"""Draws a synthetic street scene in perspective.

A scene is a list of objects along a road, drawn from far to near. Each stroke draws both image and
label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from data_prep.canvas import (
    CURB,
    EGO,
    HAZE_M,
    LABELS,
    MARKING,
    MOUNTAIN,
    ROAD,
    SIDEWALK,
    TERRAIN,
    UNLABELED,
    VEGETATION,
    ZEBRA,
    Camera,
    Canvas,
    Color,
    Range,
)
from data_prep.streets import STEP_M, STREET_M, Street, build_street, items_on

GROUND_M = 250.0  # how far the ground reaches
KERB_M = 0.14  # height of the pavement above the road
PAINT = (228, 228, 224)


@dataclass(frozen=True)
class SceneSettings:
    """The ranges (lowest, highest) and colours from which a scene's look is drawn."""

    camera_height_m: Range
    horizon: Range  # its row / image height
    focal: Range  # focal length / square root of the image's area
    lane_m: Range
    curvature: Range  # per metre, to either side
    light: Range  # exposure
    warmth: Range  # red / blue
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
VALIDATION = SceneSettings(  # no value in common with training: it measures generalisation
    camera_height_m=(1.85, 2.05),
    horizon=(0.51, 0.55),
    focal=(1.14, 1.22),
    lane_m=(2.7, 2.95),
    curvature=(0.0022, 0.0035),
    light=(0.76, 0.83),
    warmth=(1.07, 1.12),
    facades=((184, 136, 96), (156, 164, 172), (196, 164, 146), (142, 96, 84)),
)


def _noise(rng: Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Returns [H, W] float32 noise, about 0 to 1, interpolated from (rows, columns) of cells."""
    coarse = rng.random(cells, np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def _draw_backdrop(canvas: Canvas, rng: Generator) -> None:
    """Draws the sky with clouds, sometimes mountains, and distant trees below them."""
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
    """Draws edge lines, a dashed or double solid line in the middle, and sometimes an arrow."""

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
    """Draws the stop line and the zebra crossing, whose label includes the gaps, as in Vistas."""
    (left, right), across = edges, (start, start + 4)
    canvas.strip((0.3, 0), (right - 0.3, 0), (start - 1.8, start - 1.2), PAINT, MARKING)
    canvas.strip((left, 0), (right, 0), across, [asphalt] * 3, ZEBRA)
    for x in np.arange(left + 0.4, right - 0.7, 1.1):
        canvas.strip((x, 0), (x + 0.6, 0), across, PAINT, ZEBRA)


def _roughen_ground(canvas: Canvas, rng: Generator) -> None:
    """Adds haze and grain to the ground; the grain stays in place as the camera moves."""
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
    """Leaves a few spots and sometimes a thin border unlabeled, as annotators do."""
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
    """Applies a camera's exposure, colour cast, softness and noise to a scene."""
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
      settings: the ranges from which the scene's look is drawn.
      size: (height, width) of the image in pixels.
      seed: non-negative numbers that identify the scene.
      frame: number of steps of STEP_M that the camera has driven, 0 or more.

    Returns:
      The image [H, W, 3] uint8 RGB, the label [H, W] uint8 of Vistas v1.2 ids, and the instances
      [H, W] uint16, label * 256 + number.
    """
    rng = np.random.default_rng(seed)
    street = build_street(rng, settings.lane_m)
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
    items = items_on(rng, street, settings.facades)
    far_to_near = sorted(((i.s_m + frame * i.step_m, n) for n, i in enumerate(items)), reverse=True)
    for s, n in far_to_near:
        items[n].draw(canvas, items[n].x_m, s, np.random.default_rng([*seed, n]))
    if rng.random() < 0.6:
        _draw_bonnet(canvas, rng)
    image = _develop(canvas.image, settings, rng, frame)
    _leave_unlabeled(canvas, rng)
    return image, canvas.label, canvas.label * np.uint16(256) + canvas.instance
