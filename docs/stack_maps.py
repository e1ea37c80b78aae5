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
    if len(argv) != 3 or not argv[2].endswith(".png"):
        sys.exit(__doc__)
    _, ids_dir, picture_path = argv
    paths = sorted(Path(ids_dir).glob("*.png"))[:COUNT]
    if len(paths) < COUNT:
        sys.exit(f"error: {ids_dir}: must contain {COUNT} id maps, *.png; got {len(paths)}")
    maps = []
    for path in paths:
        try:
            maps.append(Image.open(path))
            maps[-1].load()
        except OSError as error:
            sys.exit(f"error: {path}: must be an id map of infer_main.py; {error}")
        if maps[-1].mode != "P":
            sys.exit(f"error: {path}: must be an id map of infer_main.py; got {maps[-1].mode}")
    picture = stack(maps).quantize(dither=Image.Dither.NONE)  # at most 256 colours
    try:
        picture.save(picture_path)
    except OSError as error:
        sys.exit(f"error: {picture_path}: cannot be written: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
