"""Stacks the first three id maps of a folder, as the colour maps of docs/results.md.

python docs/stack_maps.py OUT_DIR/ids PICTURE.png    # OUT_DIR: of infer_main.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

COUNT, WIDTH_PX, GAP_PX = 3, 828, 6


def stack(maps: Sequence[Image.Image]) -> Image.Image:
    """Scales palette images to the same width and stacks them, with white gaps."""
    scaled = [
        picture.resize((WIDTH_PX, round(picture.height * WIDTH_PX / picture.width)), Image.NEAREST)
        for picture in maps
    ]
    heights = [picture.height for picture in scaled]
    stacked = Image.new("RGB", (WIDTH_PX, sum(heights) + GAP_PX * (len(maps) - 1)), "white")
    top = 0
    for picture in scaled:
        stacked.paste(picture.convert("RGB"), (0, top))
        top += picture.height + GAP_PX
    return stacked


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    _, ids_dir, picture_path = argv
    paths = sorted(Path(ids_dir).glob("*.png"))[:COUNT]
    if not paths:
        raise FileNotFoundError(f"{ids_dir}: must contain id maps, *.png; got none")
    maps = [Image.open(path) for path in paths]
    stack(maps).quantize(dither=Image.Dither.NONE).save(picture_path)  # at most 256 colours
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
