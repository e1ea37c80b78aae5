"""A trained network for prediction: from images to logits at stride 4.

In float32, batch norms are folded into the convolutions, so that oneDNN computes convolution, bias
and ReLU in one pass. The kernels of small networks are constants: oneDNN reorders variables at
every call, and without AVX-512 it then computes ReLU6 in a slow loop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mapseg import machine, onednn
from mapseg.model.deeplab import split_model, without_upsampling
from mapseg.model.recompute import listed
from mapseg.model.resampling import Upsample, resize_aligned
from mapseg.model.weights import layer_weights

# TensorFlow holds a dozen copies of a graph's constants, so larger networks use variables. These
# are as fast there: matrix products take most of the time, and there is no ReLU6.
_MOST_CONSTANT_BYTES = 64 * 2**20
# Up to this rate oneDNN pads a dilated depthwise convolution itself. Above it, that would take 7
# times as long as with an input padded beforehand.
_LARGEST_RATE = 6


@dataclass(frozen=True)
class Network:
    """Maps images [B, H, W, 3] uint8 to logits [B, h, w, C] float32.

    Attributes:
      logits: the mapping. Logit i lies on pixel i * stride; the last ones lie on the last pixel or
        beyond it, in the padding.
      stride: distance between neighbouring logits in pixels.
      variables: the variables that the mapping reads.
    """

    logits: Callable[[tf.Tensor], tf.Tensor]
    stride: int
    variables: tuple[Any, ...] = ()


def live_network(model: keras.Model) -> Network:
    """Returns the network of `build_model` for prediction, with the weights it has at each call."""
    coarse, stride = without_upsampling(model)
    return Network(lambda images: coarse(images, training=False), stride, tuple(model.variables))


def frozen_network(model: keras.Model, *, portable: bool = False) -> Network:
    """Returns the network of `build_model` for prediction, with its current weights.

    Args:
      model: folded in float32; otherwise `live_network` is returned, because rounding folded
        kernels to 16 bits would change the logits.
      portable: works on other machines. Otherwise the graph may need oneDNN, if it is on here.
    """
    if model.get_layer("normalize").compute_dtype != "float32":
        return live_network(model)
    form = _Form(
        constant=4 * sum(math.prod(v.shape) for v in model.variables) <= _MOST_CONSTANT_BYTES,
        dilates=not portable and onednn.is_on() and not machine.gpus(),
    )
    return _folded_network(model, form)


def convertible_network(model: keras.Model) -> Network:
    """Returns the network of `build_model` for conversion to other formats, in float32.

    All kernels are constants, and every convolution is one operation, without padding if it is
    dilated: ONNX Runtime has no such convolution. TensorFlow itself needs oneDNN to run it.

    Args:
      model: folded; its precision must be float32.
    """
    return _folded_network(model, _Form(constant=True, dilates=True, pads=True))


def _folded_network(model: keras.Model, form: "_Form") -> Network:
    parts = split_model(model)
    encoder = _Folded(parts.encoder.layers, parts.encoder.inputs, parts.encoder.outputs, form)
    decoder_layers = keras.Model(parts.features, parts.logits).layers
    decoder = _Folded(decoder_layers, parts.features, [parts.logits], form, aligned=True)

    def logits(images: tf.Tensor) -> tf.Tensor:
        x = parts.normalize(images)
        if form.pads:  # LiteRT's converter forgets the channels of what is padded to any size
            x = tf.reshape(x, tf.stack([*tf.unstack(tf.shape(x))[:3], 3]))
        return decoder(encoder([x]))[0]

    return Network(logits, parts.stride, (*encoder.variables, *decoder.variables))


@dataclass(frozen=True)
class _Form:
    """How convolutions are computed.

    Attributes:
      constant: whether kernels are graph constants instead of variables.
      dilates: whether the depthwise operation supports dilation. TensorFlow's own does not.
      pads: whether the input of all dilated convolutions is padded beforehand.
    """

    constant: bool
    dilates: bool
    pads: bool = False


class _Folded:
    """Runs layers that are called once each, with folded convolutions instead of Keras's."""

    def __init__(
        self,
        layers: list[keras.layers.Layer],
        inputs: list[Any],
        outputs: list[Any],
        form: _Form,
        *,
        aligned: bool = False,
    ):
        """Reads the weights.

        Args:
          layers: the layers in the order of their calls.
          inputs: the symbolic input tensors.
          outputs: the symbolic output tensors.
          form: the form of the convolutions.
          aligned: whether both maps of every up-sampling end on the same pixel.
        """
        self._layers = [x for x in layers if not isinstance(x, keras.layers.InputLayer)]
        self._inputs, self._outputs = inputs, outputs
        users = _users(self._layers)
        for tensor in outputs:
            users.setdefault(id(tensor), []).append(None)
        self.variables: list[tf.Variable] = []
        self._replacements: dict[str, Callable[..., tf.Tensor]] = {}  # by layer name
        for layer in self._layers:
            if _is_convolution(layer):
                norm, *other_users = users[id(layer.output)]
                if other_users or not isinstance(norm, keras.layers.BatchNormalization):
                    norm = None
                else:
                    self._replacements[norm.name] = lambda x: x
                convolution = _Convolution(layer, norm, form)
                self._replacements[layer.name] = convolution
                if not form.constant:
                    self.variables.append(convolution.kernel)
            elif isinstance(layer, keras.layers.BatchNormalization):
                self._replacements.setdefault(layer.name, _make_norm(layer))
            elif aligned and isinstance(layer, Upsample):
                self._replacements[layer.name] = resize_aligned

    def __call__(self, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        values = {id(t): x for t, x in zip(self._inputs, inputs, strict=True)}
        for layer in self._layers:
            x = [values[id(t)] for t in listed(layer.input)]
            if layer.name in self._replacements:
                y = self._replacements[layer.name](*x)
            else:
                y = layer(x if isinstance(layer.input, list | tuple) else x[0])
            values[id(layer.output)] = y
        return [values[id(t)] for t in self._outputs]


def _users(layers: list[keras.layers.Layer]) -> dict[int, list[keras.layers.Layer | None]]:
    users: dict[int, list[keras.layers.Layer | None]] = {}
    for layer in layers:
        for tensor in listed(layer.input):
            users.setdefault(id(tensor), []).append(layer)
    return users


def _is_convolution(layer: keras.layers.Layer) -> bool:
    kinds = keras.layers.Conv2D | keras.layers.DepthwiseConv2D
    return isinstance(layer, kinds) and layer.activation is keras.activations.linear


def _scale_and_shift(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scale and shift equivalent to a batch norm, [C] float64 each."""
    arrays = {name: np.asarray(w, np.float64) for name, w in layer_weights(norm).items()}
    scale = arrays.get("gamma", 1.0) / np.sqrt(arrays["moving_variance"] + norm.epsilon)
    return scale, arrays.get("beta", 0.0) - arrays["moving_mean"] * scale


def _make_norm(norm: keras.layers.BatchNormalization) -> Callable[[tf.Tensor], tf.Tensor]:
    scale, shift = (x.astype(np.float32) for x in _scale_and_shift(norm))
    return lambda x: x * scale + shift


class _Convolution:
    """A convolution with the batch norm after it folded in, if there is one.

    The padding cannot be explicit: TensorFlow 2.21 with oneDNN aborts on it.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        norm: keras.layers.BatchNormalization | None,
        form: _Form,
    ):
        self._is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        self._strides, self._rates = list(layer.strides), list(layer.dilation_rate)
        self._padding, self._form = layer.padding.upper(), form
        kernel, *bias = (np.asarray(w, np.float64) for w in layer.get_weights())
        shift = bias[0] if bias else np.zeros(kernel.shape[2 if self._is_depthwise else 3])
        if norm is not None:
            scale, norm_shift = _scale_and_shift(norm)
            kernel = kernel * (scale[:, np.newaxis] if self._is_depthwise else scale)
            shift = shift * scale + norm_shift
        self.kernel, self._bias = kernel.astype(np.float32), shift.astype(np.float32)
        if not form.constant:
            self.kernel = tf.Variable(self.kernel, trainable=False)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        dilates = self._is_depthwise and self._form.dilates and self._rates != [1, 1]
        padding = self._padding
        largest = 1 if self._form.pads else _LARGEST_RATE if dilates else math.inf
        if padding == "SAME" and max(self._rates) > largest:
            sides = zip(self.kernel.shape, self._rates, strict=False)
            borders = [[(size - 1) * rate // 2] * 2 for size, rate in sides]
            x, padding = tf.pad(x, [[0, 0], *borders, [0, 0]]), "VALID"
        if not self._is_depthwise:
            y = tf.nn.conv2d(x, self.kernel, self._strides, padding, dilations=self._rates)
        elif dilates:  # of stride 1, in one operation
            y = tf.raw_ops.DepthwiseConv2dNative(
                input=x,
                filter=self.kernel,
                strides=[1] * 4,
                padding=padding,
                dilations=[1, *self._rates, 1],
            )
        else:
            strides = [1, *self._strides, 1]
            y = tf.nn.depthwise_conv2d(x, self.kernel, strides, padding, dilations=self._rates)
        return tf.nn.bias_add(y, self._bias)
