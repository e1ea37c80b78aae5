"""Gradient checkpointing: activations are recomputed in the backward pass, block by block.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

# A residual block has 8 layers or more.
_FEWEST_LAYERS = 8


@dataclass(frozen=True)
class _Block:
    """A part of a network: from one tensor to all tensors used outside of the part."""

    model: keras.Model
    source: Any
    results: list[Any]


def recomputed(model: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Returns a network in training mode that does not keep the activations within its blocks.

    Args:
      model: its layers are called once each; one input, any number of outputs.

    Returns:
      A function from the input to the outputs. Its values, gradients and moving statistics equal
      those of the model in training mode.
    """
    blocks = _cut(model)

    def run(x: tf.Tensor) -> list[tf.Tensor]:
        values = {id(model.inputs[0]): x}
        for block in blocks:
            results = _recompute(block.model, values[id(block.source)])
            values |= {id(t): y for t, y in zip(block.results, results, strict=True)}
        return [values[id(t)] for t in model.outputs]

    return run


def _cut(model: keras.Model) -> list[_Block]:
    """Cuts a network into blocks, not too small, between which one tensor is passed on."""
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    last_use = {id(t): n for n, layer in enumerate(layers) for t in listed(layer.input)}
    outputs = {id(t) for t in model.outputs}
    blocks, source, tensors = [], model.inputs[0], []
    for n, layer in enumerate(layers):
        tensors.append(layer.output)
        used_later = [t for t in [source, *tensors] if last_use.get(id(t), -1) > n]
        can_cut = len(tensors) >= _FEWEST_LAYERS and used_later == [layer.output]
        if can_cut or n == len(layers) - 1:
            results = [t for t in tensors if id(t) in outputs or t is layer.output]
            blocks.append(_Block(keras.Model(source, results), source, results))
            source, tensors = layer.output, []
    return blocks


def listed(tensors: Any) -> list[Any]:
    """Returns a layer's inputs or outputs as a list, whether one or several."""
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _recompute(block: keras.Model, x: tf.Tensor) -> list[tf.Tensor]:
    statistics = block.non_trainable_variables

    @tf.custom_gradient
    def run(x: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., Any]]:
        def gradient(
            *upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()
        ) -> tuple[tf.Tensor, list[tf.Tensor]]:
            before = [tf.identity(v) for v in statistics]
            with tf.GradientTape() as tape:
                delayed_x = x + _zero_after(upstream[0], x.dtype)
                tape.watch(delayed_x)
                results = listed(block(delayed_x, training=True))
            gradients = tape.gradient(results, [delayed_x, *variables], list(upstream))
            # The first pass has already updated the moving statistics.
            for variable, value in zip(statistics, before, strict=True):
                variable.assign(value)
            return gradients[0], gradients[1:]

        return listed(block(x, training=True)), gradient

    return listed(run(x))


def _zero_after(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns a zero that depends on x: otherwise a compiler would merge both passes into one."""
    first = tf.reshape(x, [-1])[0]
    return tf.cast(tf.where(tf.math.is_finite(first), tf.zeros_like(first), first), dtype)
