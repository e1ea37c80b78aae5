import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import PredictConfig
from mapseg.inference.predictor import Predictor
from mapseg.model.network import Network

CLASSES = 5


def by_brightness(images):
    """Class 0 to 4 by the red value, with well separated logits."""
    return 10 * tf.one_hot(tf.cast(images[..., 0], tf.int32) // 51, CLASSES)


def near_the_tiles_edge(images):
    """Class 1 within 10 pixels of the tile's edge, else class 0."""
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    y, x = tf.range(height)[:, tf.newaxis], tf.range(width)[tf.newaxis]
    depth = tf.minimum(tf.minimum(y, height - 1 - y), tf.minimum(x, width - 1 - x))
    return tf.one_hot(tf.cast(depth < 10, tf.int32), 2)[tf.newaxis]


def blocks(height, width, block=16):
    y, x = np.mgrid[:height, :width] // block
    value = ((y * 7 + x * 3) % CLASSES * 51 + 25).astype(np.uint8)
    return np.stack([value] * 3, -1)


@pytest.mark.parametrize("size", [(1, 1), (37, 61), (64, 64), (200, 150), (151, 400)])
@pytest.mark.parametrize("tile_px", [65, 1025])
def test_every_pixel_gets_its_class_at_the_size_of_the_image(size, tile_px):
    image = blocks(*size)
    predictor = Predictor(Network(by_brightness, 1), PredictConfig(scale="1", tile_px=tile_px), 512)
    ids, confidence, scale, _ = predictor.segment(image)
    np.testing.assert_array_equal(ids, image[..., 0] // 51)
    assert ids.dtype == np.uint8
    assert confidence == pytest.approx(np.exp(10) / (np.exp(10) + 4), rel=1e-4)
    assert scale == 1


@pytest.mark.parametrize("tile_px", [65, 1025])
@pytest.mark.parametrize("scale", ["0.5", "2", "1.37"])
def test_ids_of_a_scaled_input_are_in_the_right_place(scale, tile_px):
    image = blocks(192, 240, block=48)
    predictor = Predictor(
        Network(by_brightness, 1), PredictConfig(scale=scale, tile_px=tile_px), 512
    )
    ids, _, used, _ = predictor.segment(image)
    assert used == pytest.approx(float(scale))
    # At the seams between blocks, blending may yield an intermediate class; a shift of the output
    # would move whole seams.
    wrong = ids != image[..., 0] // 51
    y, x = np.mgrid[:192, :240] % 48
    inside = (y >= 3) & (y < 45) & (x >= 3) & (x < 45)
    assert not wrong[inside].any()
    left = wrong[:, 1:120].mean()
    assert left == pytest.approx(wrong[:, 120:239].mean(), abs=0.03)


def test_auto_scale_matches_the_training_images_long_side():
    predictor = Predictor(Network(by_brightness, 1), PredictConfig(), 480)
    for size, scale in (((240, 120), 2), ((100, 960), 0.5), ((480, 300), 1)):
        ids, _, used, _ = predictor.segment(blocks(*size))
        assert used == pytest.approx(scale)
        assert ids.shape == size


def test_pixels_come_from_the_inner_part_of_a_tile():
    predictor = Predictor(
        Network(near_the_tiles_edge, 1), PredictConfig(scale="1", tile_px=101), 512
    )
    ids, *_ = predictor.segment(np.zeros([300, 260, 3], np.uint8))
    assert not ids[10:-10, 10:-10].any()  # only the image's own edges are near an edge
    assert ids[:10].all()
    assert ids[:, -10:].all()


def test_flip_averages_with_the_mirror_image():
    def left_is_sure_right_is_not(images):
        # Class 1 leads by 4 on the left half of the input, class 0 by 2 on the right.
        x = tf.range(tf.shape(images)[2])
        left = tf.cast(x < tf.shape(images)[2] // 2, tf.float32)
        logits = tf.stack([2 * (1 - left), 4 * left], -1)
        return tf.broadcast_to(logits, tf.concat([tf.shape(images)[:3], [2]], 0))

    image = np.zeros([4, 8, 3], np.uint8)
    plain, flipped = (
        Predictor(
            Network(left_is_sure_right_is_not, 1), PredictConfig(scale="1", flip_average=flip), 8
        ).segment(
            image,
        )[0]
        for flip in (False, True)
    )
    assert plain[0].tolist() == [1] * 4 + [0] * 4
    assert flipped[0].tolist() == [1] * 8


def waves(height, width):
    """Logits [height, width, CLASSES] that differ by position and scale."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    across, down = np.array([5, -2, 6, 1, -8]), np.array([3, 7, -4, 9, 2])
    phases = y[:, np.newaxis, np.newaxis] * down + x[:, np.newaxis] * across + width / 9
    return 4 * np.sin(phases)


def read_between(values, positions):
    """Linear interpolation of [n, m] along its first axis."""
    columns = [np.interp(positions, np.arange(len(values)), column) for column in values.T]
    return np.stack(columns, -1)


def reference_views(size, scaled_sizes, flip):
    """Logits [H, W, CLASSES] at the image's pixels of each scale, and of each mirror image."""
    places = [np.arange(side) + 0.5 for side in size]
    for scaled in scaled_sizes:
        rows, columns = (p * s / n - 0.5 for p, s, n in zip(places, scaled, size, strict=True))
        for mirrored in (False, True)[: 1 + flip]:
            logits = waves(*scaled)[:, ::-1] if mirrored else waves(*scaled)
            by_class = [
                read_between(read_between(logits[..., c], rows).T, columns).T
                for c in range(CLASSES)
            ]
            yield np.stack(by_class, -1)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_averaged_over_scales_and_mirror_images(flip):
    def network(images):
        _, height, width, _ = tf.unstack(tf.shape(images))
        logits = tf.numpy_function(lambda h, w: waves(h, w).astype("f"), [height, width], "float32")
        return tf.reshape(logits, [1, height, width, CLASSES])

    config = PredictConfig(scale="2", scales="1,0.5,0.3", flip_average=flip)
    predictor = Predictor(Network(network, 1), config, 512)
    ids, confidence, scale, _ = predictor.segment(np.zeros([30, 50, 3], np.uint8))
    views = list(reference_views((30, 50), [(60, 100), (30, 50), (18, 30)], flip))
    expected = np.mean([softmax(view) for view in views], axis=0)
    np.testing.assert_array_equal(ids, expected.argmax(-1))
    assert confidence == pytest.approx(expected.max(-1).mean(), rel=1e-5)
    assert scale == 2
    assert (ids != np.mean(views, axis=0).argmax(-1)).any()  # averaged logits would differ


def test_every_scale_and_mirror_image_is_aligned():
    """A single misaligned view would turn pixels bright."""

    def bright_is_sure(images):
        bright = tf.cast(images[..., 0] > 127, tf.float32)
        return tf.stack([0.1 * (1 - bright), 10 * bright], -1)

    image = np.zeros([190, 330, 3], np.uint8)
    for top, left in ((0, 0), (20, 150), (90, 60), (100, 250), (150, 310)):
        image[top : top + 40, left : left + 20] = 255
    config = PredictConfig(scale="1", scales="0.5,1,2", flip_average=True, tile_px=65)
    ids, *_ = Predictor(Network(bright_is_sure, 1), config, 512).segment(image)
    bright = image[..., 0] > 127
    assert ids[bright].all()
    grown = tf.nn.max_pool2d(bright[np.newaxis, ..., np.newaxis].astype("f"), 7, 1, "SAME")
    assert not ids[grown[0, ..., 0] == 0].any()  # beyond the seams of the smallest scale


def test_pixels_come_from_the_inner_part_of_the_tiles_of_all_scales():
    """A single view from near a tile's edge would turn a pixel into class 1."""

    def near_an_edge_is_sure(images):
        tf.debugging.assert_less_equal(tf.shape(images)[1:3], 101)
        near = tf.cast(near_the_tiles_edge(images)[..., 1], tf.float32)
        return tf.stack([0.1 * (1 - near), 10 * near], -1)

    config = PredictConfig(scale="1", scales="0.4,0.9,1.5", flip_average=True, tile_px=101)
    predictor = Predictor(Network(near_an_edge_is_sure, 1), config, 512)
    ids, *_ = predictor.segment(np.zeros([200, 260, 3], np.uint8))
    assert not ids[27:-27, 27:-27].any()  # 10 pixels of the smallest scale, and a seam
    assert ids[:24].all()
    assert ids[:, -24:].all()


@pytest.mark.parametrize("size", [(150, 210), (97, 301)])
def test_tiles_are_sampled_on_the_grid_of_the_whole_image(size):
    """A network that looks only at every 16th pixel, like an encoder of output stride 16."""

    def sampled(images):
        samples = tf.cast(images[:, ::16, ::16, :1], tf.float32)
        height, width = ((tf.shape(images)[i] + 3) // 4 for i in (1, 2))
        rows, columns = (tf.range(n) // 4 for n in (height, width))
        values = tf.gather(tf.gather(samples, rows, axis=1), columns, axis=2)
        return tf.concat([values, 255 - values], axis=-1)

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    whole, tiled = (
        Predictor(Network(sampled, 4), PredictConfig(scale="1", tile_px=tile_px), 80).segment(image)
        for tile_px in (513, 129)
    )
    np.testing.assert_array_equal(tiled.ids, whole.ids)


def test_a_tile_without_pixels_of_the_image_is_omitted():
    runs = []

    def count(images):
        tf.py_function(lambda: runs.append(1), [], [])
        return by_brightness(images)

    predictor = Predictor(Network(count, 1), PredictConfig(tile_px=65), 640)
    ids, _, scale, _ = predictor.segment(np.full([1, 2, 3], 60, np.uint8))
    assert scale == 320
    assert ids.tolist() == [[1, 1]]
    assert len(runs) == 2


def patches(images):
    """Logits at stride 4: samples at the image's pixels 4 i, then padding."""
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    border = [[0, 0], [0, -height % 4 + 1], [0, -width % 4 + 1], [0, 0]]
    samples = tf.pad(tf.cast(images, tf.float32), border, constant_values=255.0)[:, ::4, ::4]
    return tf.concat([samples[..., :1], 255 - samples[..., :1], samples[..., 1:2]], -1) / 64


def coarse_reference(image):
    """Bilinear interpolation of those logits at the image's pixels: [H, W, 3]."""
    logits = patches(image[np.newaxis].astype("f")).numpy()[0].astype(np.float64)
    rows, columns = (np.arange(side) / 4 for side in image.shape[:2])
    by_class = [
        read_between(read_between(x, rows).T, columns).T for x in np.moveaxis(logits, -1, 0)
    ]
    return np.stack(by_class, -1)


@pytest.mark.parametrize("size", [(61, 83), (64, 80), (65, 97)])
def test_logits_at_stride_4_are_interpolated_at_their_positions_also_mirrored(size):
    image = blocks(*size, block=8) // 2 + np.arange(size[1], dtype=np.uint8)[:, np.newaxis]
    plain = Predictor(Network(patches, 4), PredictConfig(scale="1"), 83)
    expected = coarse_reference(image)
    np.testing.assert_array_equal(plain.segment(image).ids, expected.argmax(-1))
    result = plain.segment(image, probability=True)
    np.testing.assert_array_equal(result.ids, expected.argmax(-1))
    np.testing.assert_allclose(result.probability, softmax(expected).max(-1), rtol=1e-4)

    mirrored = coarse_reference(image[:, ::-1])[:, ::-1]
    mean = (softmax(expected) + softmax(mirrored)) / 2
    both = Predictor(Network(patches, 4), PredictConfig(scale="1", flip_average=True), 83)
    result = both.segment(image, probability=True)
    np.testing.assert_array_equal(result.ids, mean.argmax(-1))
    np.testing.assert_allclose(result.probability, mean.max(-1), rtol=1e-4)
    assert result.confidence == pytest.approx(mean.max(-1).mean(), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"tile_px": 65}, {"scales": "0.5,1"}])
def test_a_batch_returns_the_results_of_its_single_images(options):
    images = np.stack([blocks(90, 130), blocks(90, 130, block=11), blocks(90, 130)[::-1]])
    predictor = Predictor(Network(patches, 4), PredictConfig(scale="1.3", **options), 130)
    batch = predictor.segment_batch(images)
    assert len(batch) == 3
    assert [x.scale for x in batch] == pytest.approx([1.3] * 3)
    for image, result in zip(images, batch[0:3], strict=True):
        alone = predictor.segment(image)
        np.testing.assert_array_equal(result.ids, alone.ids)
        assert result.confidence == pytest.approx(alone.confidence)
    with pytest.raises(IndexError):
        batch[3]
