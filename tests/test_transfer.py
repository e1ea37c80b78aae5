from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from mapseg import checkpoints
from mapseg.config import ModelConfig
from mapseg.encoders import deeplab_names
from mapseg.labels import LabelClass, make_label_set
from mapseg.model import build_model, weight_arrays
from mapseg.transfer import init_weights

LABELS = make_label_set([LabelClass(i, f"c{i}", (i, i, i)) for i in range(21)], "all")
XCEPTION = ModelConfig(encoder="xception65", encoder_weights="none")


@pytest.fixture(scope="module")
def xception():
    return build_model(XCEPTION, 21)


def write_deeplab_checkpoint(prefix, arrays):
    """Writes variables by name, as TensorFlow 1 did."""
    names = sorted(arrays)
    values = [tf.constant(arrays[n]) for n in names]
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )


def test_a_deeplab_checkpoint_fills_all_but_the_last_layer(xception, tmp_path):
    """The published ones have 19 or 21 classes, and variables that we do not need."""
    rng = np.random.default_rng(0)
    own = weight_arrays(xception)
    stored = {}
    for key, name in deeplab_names(xception).items():
        stored[name] = rng.normal(size=own[key].shape).astype(np.float32)
    stored["logits/semantic/weights"] = np.zeros([1, 1, 256, 19], np.float32)
    stored["logits/semantic/biases"] = np.zeros([19], np.float32)
    stored["global_step"] = np.array(7, np.int64)
    prefix = str(tmp_path / "model.ckpt")
    write_deeplab_checkpoint(prefix, stored)

    lines = init_weights(xception, prefix, LABELS)
    assert lines[0].endswith(f"{len(own) - 2} of {len(own)} weights matched")
    assert [line.split()[1] for line in lines[1:]] == [
        "logits-semantic/kernel",
        "logits-semantic/bias",
    ]
    filled = weight_arrays(xception)
    first = stored["xception_65/entry_flow/conv1_1/weights"]
    assert first.shape == (3, 3, 3, 32)
    keys = {name: key for key, name in deeplab_names(xception).items()}
    np.testing.assert_array_equal(filled[keys["xception_65/entry_flow/conv1_1/weights"]], first)
    moving = "aspp0/BatchNorm/moving_variance"
    np.testing.assert_array_equal(filled[keys[moving]], stored[moving])
    np.testing.assert_array_equal(filled["logits-semantic/bias"], own["logits-semantic/bias"])


def test_what_is_not_there_or_does_not_fit_is_named(xception, run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: init_from must be a run folder"):
        init_weights(xception, str(tmp_path / "nowhere"), LABELS)
    (tmp_path / "bad.npz").write_text("no weights")
    with pytest.raises(ValueError, match=r"bad\.npz"):
        init_weights(xception, str(tmp_path / "bad.npz"), LABELS)
    np.savez(tmp_path / "other.npz", stranger=np.zeros(3))
    before = weight_arrays(xception)
    with pytest.raises(ValueError, match="none of its 1 fit"):
        init_weights(xception, str(tmp_path / "other.npz"), LABELS)
    for key, value in weight_arrays(xception).items():
        np.testing.assert_array_equal(value, before[key])
    untrained = replace(checkpoints.open_run(run_dir), run_dir=tmp_path / "run")
    checkpoints.store_run(untrained)
    with pytest.raises(FileNotFoundError, match="train first"):
        init_weights(xception, str(untrained.run_dir), LABELS)


def test_the_last_layer_is_kept_for_the_same_classes_only(run_dir):
    run = checkpoints.open_run(run_dir)
    model = build_model(replace(run.model, encoder_weights="none"), len(run.label_set.classes))
    assert len(init_weights(model, str(run_dir), run.label_set)) == 1
    renamed = [replace(c, name=f"other-{c.name}") for c in run.label_set.classes]
    lines = init_weights(model, str(run_dir), replace(run.label_set, classes=tuple(renamed)))
    assert [line.split()[1] for line in lines[1:]] == [
        "logits-semantic/kernel",
        "logits-semantic/bias",
    ]
