"""Training without keeping activations: what the gradient needs is computed again, block by block.

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
    """A part of a network: from one tensor to the tensors that other parts, or its user, need."""

    model: keras.Model
    source: Any
    results: list[Any]


def recomputed(model: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Lets a network in training forget the activations within its blocks.

    Args:
      model: layers that are called once each; one input, any number of outputs.

    Returns:
      A function from the input to the outputs, in training mode. Its values, gradients and moving
      statistics are those of the model.
    """
    blocks = _cut(model)

    def run(x: tf.Tensor) -> list[tf.Tensor]:
        known = {id(model.inputs[0]): x}
        for block in blocks:
            found = _recompute(block.model, known[id(block.source)])
            known |= {id(t): y for t, y in zip(block.results, found, strict=True)}
        return [known[id(t)] for t in model.outputs]

    return run


def _cut(model: keras.Model) -> list[_Block]:
    """Cuts a network wherever a single tensor leads on, into blocks that are not too small."""
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    last_use = {id(t): n for n, layer in enumerate(layers) for t in listed(layer.input)}
    outputs = {id(t) for t in model.outputs}
    blocks, source, made = [], model.inputs[0], []
    for n, layer in enumerate(layers):
        made.append(layer.output)
        leading_on = [t for t in [source, *made] if last_use.get(id(t), -1) > n]
        single = len(made) >= _FEWEST_LAYERS and leading_on == [layer.output]
        if single or n == len(layers) - 1:
            results = [t for t in made if id(t) in outputs or t is layer.output]
            blocks.append(_Block(keras.Model(source, results), source, results))
            source, made = layer.output, []
    return blocks


def listed(tensors: Any) -> list[Any]:
    """Returns a layer's inputs or outputs as a list, be there one or several."""
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _recompute(block: keras.Model, x: tf.Tensor) -> list[tf.Tensor]:
    statistics = block.non_trainable_variables

    @tf.custom_gradient
    def run(x: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., Any]]:
        def gradient(
            *upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()
        ) -> tuple[tf.Tensor, list[tf.Tensor]]:
            kept = [tf.identity(v) for v in statistics]
            with tf.GradientTape() as tape:
                again = x + _zero_after(upstream[0], x.dtype)
                tape.watch(again)
                found = listed(block(again, training=True))
            slopes = tape.gradient(found, [again, *variables], list(upstream))
            # They have moved with the first pass already.
            for variable, value in zip(statistics, kept, strict=True):
                variable.assign(value)
            return slopes[0], slopes[1:]

        return listed(block(x, training=True)), gradient

    return listed(run(x))


def _zero_after(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """A zero that is known only with x: without it a compiler would merge both passes into one."""
    one = tf.reshape(x, [-1])[0]
    return tf.cast(tf.where(tf.math.is_finite(one), tf.zeros_like(one), one), dtype)
