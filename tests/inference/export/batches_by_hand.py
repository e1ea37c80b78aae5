"""Batches of noisy scenes, of several sizes, and the ids that inference gives them."""

import numpy as np
from conftest import tiny_scene

_SHAPES = ([1, 60, 80], [3, 60, 80], [2, 33, 121], [1, 131, 7])


def make_batches(estimator, config):
    """Returns images [B, H, W, 3] and ids [B, H, W], by the number of the batch as text."""
    rng = np.random.default_rng(5)
    batches, expected = {}, {}
    for i, (count, *size) in enumerate(_SHAPES):
        noise = rng.integers(-60, 60, [count, *size, 1])
        scene, _ = tiny_scene(rng, max(size[0], 40), max(size[1], 40))
        images = np.clip(scene[: size[0], : size[1]] + noise, 0, 255).astype(np.uint8)
        batches[str(i)] = images
        expected[str(i)] = np.stack([estimator.predict(x, config).ids for x in images])
    return batches, expected
