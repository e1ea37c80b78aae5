"""Three samples of three classes in two shards, without the conversion."""

import io

import numpy as np
from PIL import Image

from mapseg.data.manifest import Manifest, Split, shard_name, write_manifest
from mapseg.data.samples import encode_sample
from mapseg.data.shards import write_shard
from mapseg.data.tiles import encode_tiles
from mapseg.labels import LabelClass

CLASSES = (
    LabelClass(0, "road", (128, 64, 128)),
    LabelClass(1, "car", (0, 0, 142)),
    LabelClass(2, "unlabeled", (0, 0, 0), evaluate=False),
)
SIZES = [(4, 6), (8, 4), (4, 6)]


def encoded(pixels, image_format, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def scene(i):
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (*SIZES[i], 3), np.uint8)
    return image, rng.integers(0, 3, SIZES[i], np.uint8)


def sample(i, name=None):
    image, label = scene(i)
    return encode_sample(
        name or f"-key_{i}",
        encoded(image, "PNG"),
        "png",
        SIZES[i],
        3,
        encoded(label, "PNG"),
        encode_tiles(label),
    )


def write_records(folder, records=None):
    records = [sample(i) for i in range(3)] if records is None else records
    shards = [
        write_shard(folder / shard_name("training", 0, 2), records[:2]),
        write_shard(folder / shard_name("training", 1, 2), records[2:]),
    ]
    split = Split(
        "training",
        tuple(shards),
        {c.name: 0 for c in CLASSES},
        {(4, 6): 2, (8, 4): 1},
        {},
        "training-tiles.npz",
        "",
    )
    manifest = Manifest(folder, "0", CLASSES, {"training": split}, {"testing": "no labels"})
    write_manifest(manifest)
    return manifest
