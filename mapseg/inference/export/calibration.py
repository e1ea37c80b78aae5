"""The images from which the ranges of an integer network's tensors are measured."""

import numpy as np

from mapseg.data.manifest import Manifest
from mapseg.data.whole_samples import even_places, read_places
from mapseg.inference.export.check import cut
from mapseg.inference.export.source import Source

# 8, 16 and 32 images of the demo give the same mean IoU within 0.2 points.
COUNT = 16


def read_calibration_images(source: Source, manifest: Manifest) -> list[np.ndarray]:
    """Reads images at even distances over the training split: [H, W, 3] uint8 each.

    They are whole, as in inference, or cut if they are large. On crops, other ranges would be
    measured: features that average a larger area vary less.

    Args:
      source: what is exported.
      manifest: of the records.

    Raises:
      ValueError: the records have no such split, or a sample is damaged.
    """
    run = source.run
    split = manifest.split(run.train.train_split)
    places = even_places(COUNT, split.samples)
    samples = read_places(manifest, split.name, run.label_set, places)
    return [cut(image, source.config, run.long_side_px) for image, *_ in samples]
