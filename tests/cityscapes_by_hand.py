"""A small folder with the names, layout and kinds of files of Cityscapes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mapseg.labels import VOID, make_label_set, read_class_table

CLASSES = read_class_table(Path(__file__).parents[1] / "data_prep" / "cityscapes_34.json")
CITIES = {"train": ("aachen", "zurich"), "val": ("frankfurt", "munster"), "test": ("berlin",)}
_BLOCK_PX = 20
_DUMMY_ID = 3  # "out of roi", of which the public labels of test images consist


def write_cityscapes(root, images_per_city=2, seed=0):
    """Writes leftImg8bit and gtFine: blocks of all 34 ids in the colours of their classes."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (len(CLASSES), 3))
    for split, cities in CITIES.items():
        for city in cities:
            for index in range(images_per_city):
                blocks = rng.permutation([*range(34), 7, 11]).reshape(4, 9).astype(np.uint8)
                ids = blocks.repeat(_BLOCK_PX, axis=0).repeat(_BLOCK_PX, axis=1)
                noise = rng.integers(-9, 10, (*ids.shape, 3))
                image = np.clip(colors[ids] + noise, 0, 255).astype(np.uint8)
                label = np.full_like(ids, _DUMMY_ID) if split == "test" else ids
                _write_files(root, split, city, f"{city}_{index:06}_000019", image, label)


def _write_files(root, split, city, name, image, label):
    image_dir, label_dir = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
    for folder in (image_dir, label_dir):
        folder.mkdir(parents=True, exist_ok=True)
    train_ids = make_label_set(CLASSES, "all").table[label]
    assert VOID in train_ids
    palette = np.array([(*c.color, 255) for c in CLASSES], np.uint8)
    Image.fromarray(image).save(image_dir / f"{name}_leftImg8bit.png")
    for kind, pixels in {
        "labelIds": label,
        "labelTrainIds": train_ids,
        "instanceIds": np.where(label >= 24, label * np.int32(1000), label).astype(np.uint16),
        "color": palette[label],
    }.items():
        Image.fromarray(pixels).save(label_dir / f"{name}_gtFine_{kind}.png")
    (label_dir / f"{name}_gtFine_polygons.json").write_text(json.dumps({"objects": []}))
