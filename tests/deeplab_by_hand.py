"""Checkpoints in the format of TF DeepLab."""

import tensorflow as tf


def write_deeplab_checkpoint(prefix, arrays):
    """Writes variables by name, as TensorFlow 1 did."""
    names = sorted(arrays)
    values = [tf.constant(arrays[n]) for n in names]
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
