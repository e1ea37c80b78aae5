"""A trained network as it predicts: from images to logits at stride 4, and no further.

On a CPU its batch norms are folded into the convolutions, so that oneDNN computes convolution, bias
and ReLU in one pass. The kernels of small networks are constants: those that are variables oneDNN
lays out anew at each call, and without AVX-512 it then clips a ReLU6 in a slow loop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mapseg.model.deeplab import split_model, without_upsampling
from mapseg.model.resampling import Upsample, resize_aligned

# TensorFlow holds a graph's constants a dozen times: larger networks have variables. They have no
# ReLU6, and take no longer.
_MOST_CONSTANT_BYTES = 64 * 2**20
# Of a depthwise convolution that oneDNN pads itself; above it that is 7 times slower.
_LARGEST_RATE = 6


@dataclass(frozen=True)
class Network:
    """Maps images [B, H, W, 3] uint8 to logits [B, h, w, C] float32.

    Attributes:
      logits: the mapping. Logit i lies on pixel i * stride; the last ones lie on the last pixel or
        beyond it, in the padding.
      stride: pixels from a logit to the next.
      variables: what the mapping reads.
    """

    logits: Callable[[tf.Tensor], tf.Tensor]
    stride: int
    variables: tuple[Any, ...] = ()


def live_network(model: keras.Model) -> Network:
    """Returns the network of `build_model` as it predicts with the weights of each call."""
    coarse, stride = without_upsampling(model)
    return Network(lambda images: coarse(images, training=False), stride, tuple(model.variables))


def frozen_network(model: keras.Model) -> Network:
    """Returns the network of `build_model` as it predicts with the weights that it has now.

    Args:
      model: in float32 it is folded, else `live_network` is returned: rounding folded kernels to
        16 bits would give other logits.
    """
    if model.get_layer("normalize").compute_dtype != "float32":
        return live_network(model)
    parts = split_model(model)
    constant = 4 * sum(math.prod(v.shape) for v in model.variables) <= _MOST_CONSTANT_BYTES
    encoder = _Folded(
        parts.encoder.layers, parts.encoder.inputs, parts.encoder.outputs, constant=constant
    )
    decoder_layers = keras.Model(parts.features, parts.logits).layers
    decoder = _Folded(
        decoder_layers, parts.features, [parts.logits], constant=constant, aligned=True
    )

    def logits(images: tf.Tensor) -> tf.Tensor:
        return decoder(encoder([parts.normalize(images)]))[0]

    return Network(logits, parts.stride, (*encoder.variables, *decoder.variables))


class _Folded:
    """Runs layers that are called once each, with convolutions of its own in place of Keras's."""

    def __init__(
        self,
        layers: list[keras.layers.Layer],
        inputs: list[Any],
        outputs: list[Any],
        *,
        constant: bool,
        aligned: bool = False,
    ):
        """Reads the weights.

        Args:
          layers: in the order of their calls.
          inputs: symbolic tensors that enter.
          outputs: symbolic tensors to return.
          constant: whether kernels are constants of the graph.
          aligned: whether the maps of every up-sampling end on the same pixel.
        """
        self._layers = [x for x in layers if not isinstance(x, keras.layers.InputLayer)]
        self._inputs, self._outputs, self._aligned = inputs, outputs, aligned
        users = _users(self._layers)
        for tensor in outputs:
            users.setdefault(id(tensor), []).append(None)
        self._convolutions: dict[str, _Convolution] = {}
        self._folded: set[str] = set()
        for layer in self._layers:
            if not _is_convolution(layer):
                continue
            norm, *others = users[id(layer.output)]
            if others or not isinstance(norm, keras.layers.BatchNormalization):
                norm = None
            else:
                self._folded.add(norm.name)
            self._convolutions[layer.name] = _Convolution(layer, norm, constant=constant)
        kernels = (x.kernel for x in self._convolutions.values())
        self.variables = [kernel for kernel in kernels if isinstance(kernel, tf.Variable)]

    def __call__(self, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        known = {id(t): x for t, x in zip(self._inputs, inputs, strict=True)}
        for layer in self._layers:
            x = [known[id(t)] for t in _listed(layer.input)]
            if layer.name in self._convolutions:
                y = self._convolutions[layer.name](x[0])
            elif layer.name in self._folded:
                y = x[0]
            elif self._aligned and isinstance(layer, Upsample):
                y = resize_aligned(*x)
            else:
                y = layer(x if isinstance(layer.input, list | tuple) else x[0])
            known[id(layer.output)] = y
        return [known[id(t)] for t in self._outputs]


def _listed(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _users(layers: list[keras.layers.Layer]) -> dict[int, list[keras.layers.Layer | None]]:
    users: dict[int, list[keras.layers.Layer | None]] = {}
    for layer in layers:
        for tensor in _listed(layer.input):
            users.setdefault(id(tensor), []).append(layer)
    return users


def _is_convolution(layer: keras.layers.Layer) -> bool:
    kinds = keras.layers.Conv2D | keras.layers.DepthwiseConv2D
    return isinstance(layer, kinds) and layer.activation is keras.activations.linear


class _Convolution:
    """A convolution with the batch norm after it, if there is one.

    Its padding cannot be explicit: TensorFlow 2.21 with oneDNN aborts at that.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        norm: keras.layers.BatchNormalization | None,
        *,
        constant: bool,
    ):
        self._is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        self._strides, self._dilations = layer.strides, layer.dilation_rate
        self._padding = layer.padding.upper()
        kernel, *bias = (np.asarray(w, np.float64) for w in layer.get_weights())
        channels = kernel.shape[2 if self._is_depthwise else 3]
        scale, shift = np.ones(channels), bias[0] if bias else np.zeros(channels)
        if norm is not None:
            weights = {w.name.rpartition("/")[2].partition(":")[0]: w for w in norm.weights}
            arrays = {name: np.asarray(w, np.float64) for name, w in weights.items()}
            scale = arrays.get("gamma", scale) / np.sqrt(arrays["moving_variance"] + norm.epsilon)
            shift = arrays.get("beta", 0.0) + (shift - arrays["moving_mean"]) * scale
        kernel *= scale[:, np.newaxis] if self._is_depthwise else scale
        self.kernel, self._bias = kernel.astype(np.float32), shift.astype(np.float32)
        if not constant:
            self.kernel = tf.Variable(self.kernel, trainable=False)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        operation, padding = tf.raw_ops.Conv2D, self._padding
        if self._is_depthwise:
            operation = tf.raw_ops.DepthwiseConv2dNative
            if padding == "SAME" and max(self._dilations) > _LARGEST_RATE:  # so the stride is 1
                sides = zip(self.kernel.shape, self._dilations, strict=False)
                borders = [[(size - 1) * rate // 2] * 2 for size, rate in sides]
                x, padding = tf.pad(x, [[0, 0], *borders, [0, 0]]), "VALID"
        y = operation(
            input=x,
            filter=self.kernel,
            strides=[1, *self._strides, 1],
            padding=padding,
            dilations=[1, *self._dilations, 1],
        )
        return tf.nn.bias_add(y, self._bias)
