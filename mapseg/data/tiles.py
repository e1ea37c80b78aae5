"""Labels in tiles: a window is decoded from few tiles, and a table lists the ids in each.

A label [H, W] is cut, from its top left corner, into squares of TILE_PX pixels, stored row by row.
Tiles at the right and bottom are padded with zeros, so that all decode to one size.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import cv2
import numpy as np

# Smaller: more tiles to decode. Larger: more pixels decoded outside the window.
TILE_PX = 256

# Level 3 is about twice as fast to encode as 6, for little more space.
_PNG_OPTIONS = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 3),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
]


@dataclass(frozen=True)
class Window:
    """A rectangle in the pixels of an image and its label.

    Attributes:
      top: first row, zero or more.
      left: first column, zero or more.
      height: rows, positive.
      width: columns, positive.
    """

    top: int
    left: int
    height: int
    width: int

    def within(self, size: tuple[int, int]) -> "Window":
        """Returns the part inside an image of (height, width)."""
        bottom = min(self.top + self.height, size[0])
        right = min(self.left + self.width, size[1])
        return Window(self.top, self.left, bottom - self.top, right - self.left)

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Returns a view of an image or label, cut to the clipped window."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def tile_grid(size: Sequence[int]) -> tuple[int, int]:
    """Returns the number of (rows, columns) of tiles in a label of (height, width)."""
    return -(-int(size[0]) // TILE_PX), -(-int(size[1]) // TILE_PX)


def cut_tiles(label: np.ndarray) -> list[np.ndarray]:
    """Cuts a label [H, W] into its tiles, row by row; those at the edges are smaller."""
    height, width = label.shape
    return [
        label[top : top + TILE_PX, left : left + TILE_PX]
        for top in range(0, height, TILE_PX)
        for left in range(0, width, TILE_PX)
    ]


def fill_tiles(label: np.ndarray) -> np.ndarray:
    """Pads a label [H, W] uint8 with zeros at the bottom and right to whole tiles."""
    rows, columns = tile_grid(label.shape)
    filled = np.zeros((rows * TILE_PX, columns * TILE_PX), np.uint8)
    filled[: label.shape[0], : label.shape[1]] = label
    return filled


def encode_tiles(label: np.ndarray) -> list[bytes]:
    """Encodes the tiles of a label.

    Args:
      label: [H, W] uint8.

    Returns:
      Greyscale PNGs of TILE_PX by TILE_PX pixels, row by row.
    """
    tiles = cut_tiles(fill_tiles(label))
    return [_encode_uniform(int(t[0, 0])) if t.min() == t.max() else _encode(t) for t in tiles]


def _encode(tile: np.ndarray) -> bytes:
    return cv2.imencode(".png", tile, _PNG_OPTIONS)[1].tobytes()


@cache
def _encode_uniform(source_id: int) -> bytes:
    """Encodes a tile of one id; cached, as many are all sky or all road."""
    return _encode(np.full((TILE_PX, TILE_PX), source_id, np.uint8))


def decode_tile(png: bytes) -> np.ndarray:
    """Decodes one tile, [TILE_PX, TILE_PX] uint8.

    Raises:
      ValueError: it is not a PNG of that size and type.
    """
    tile = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if tile is None or tile.shape != (TILE_PX, TILE_PX) or tile.dtype != np.uint8:
        raise ValueError(f"a tile must be an 8-bit greyscale PNG of {TILE_PX}x{TILE_PX} pixels")
    return tile


def decode_window(tiles: Sequence[bytes], size: tuple[int, int], window: Window) -> np.ndarray:
    """Decodes a window of a label from the tiles that it overlaps.

    Args:
      tiles: all tiles of the label.
      size: (height, width) of the label.
      window: within the label.

    Returns:
      [height, width] uint8.
    """
    rows = range(window.top // TILE_PX, -(-(window.top + window.height) // TILE_PX))
    columns = range(window.left // TILE_PX, -(-(window.left + window.width) // TILE_PX))
    row_length = tile_grid(size)[1]
    pixels = np.vstack(
        [np.hstack([decode_tile(tiles[r * row_length + c]) for c in columns]) for r in rows]
    )
    top, left = window.top - rows[0] * TILE_PX, window.left - columns[0] * TILE_PX
    return Window(top, left, window.height, window.width).cut(pixels)


def count_ids(label: np.ndarray) -> np.ndarray:
    """Counts the pixels of every id in every tile: label [H, W] uint8 -> [tiles, 256] int64."""
    return np.stack([np.bincount(tile.reshape(-1), minlength=256) for tile in cut_tiles(label)])


@dataclass(frozen=True, eq=False)
class TileTable:
    """The source ids in each tile of a split.

    Attributes:
      sizes: [samples, 2] int32, (height, width) of each sample, in stored order.
      held: [tiles, bytes] uint8, one bit per id from 0, in the order of `numpy.packbits`: set
        if the tile contains the id. The tiles of a sample are consecutive.
    """

    sizes: np.ndarray
    held: np.ndarray

    @cached_property
    def first(self) -> np.ndarray:
        """[samples + 1] int64: index in `held` of each sample's first tile, then `len(held)`."""
        grids = -(-self.sizes.astype(np.int64) // TILE_PX)
        return np.concatenate([[0], np.cumsum(grids.prod(axis=1))])

    def holding(self, ids: Sequence[int]) -> np.ndarray:
        """Returns the indices in `held` of the tiles that contain any of these ids, ascending."""
        bits = np.zeros(256, np.uint8)
        bits[list(ids)] = 1
        mask = np.packbits(bits)[: self.held.shape[1]]
        matches = np.zeros(len(self.held), bool)
        for column in np.flatnonzero(mask):
            matches |= (self.held[:, column] & mask[column]) != 0
        return np.flatnonzero(matches)


def pack_ids(counts: np.ndarray) -> np.ndarray:
    """Converts the result of `count_ids` to rows of a table: [tiles, 256] -> [tiles, 32] uint8."""
    return np.packbits(counts > 0, axis=1)


def encode_tile_table(table: TileTable) -> bytes:
    """Returns a table as the content of an .npz file; equal tables give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, sizes=table.sizes, held=table.held)
    return buffer.getvalue()


def read_tile_table(path: Path, sha256: str, remedy: str) -> TileTable:
    """Reads a tile table and checks its checksum.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it was changed since it was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this table is missing. {remedy}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path}: must be as it was written; its sha256 differs. {remedy}")
    with np.load(io.BytesIO(data)) as arrays:
        return TileTable(arrays["sizes"], arrays["held"])
