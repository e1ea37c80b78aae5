from dataclasses import replace

import numpy as np
import pytest
from deeplab_by_hand import write_deeplab_checkpoint

from mapseg.config import ModelConfig
from mapseg.labels import LabelClass, make_label_set
from mapseg.model.deeplab import build_model
from mapseg.model.weights import deeplab_names, read_weights, weight_arrays
from mapseg.runs import checkpoints
from mapseg.runs.folder import open_run, store_run
from mapseg.training.initial_weights import init_weights

LABELS = make_label_set([LabelClass(i, f"c{i}", (i, i, i)) for i in range(21)], "all")


@pytest.fixture
def xception():
    return build_model(ModelConfig(encoder="xception65", encoder_weights="none"), 21)


def test_a_deeplab_checkpoint_fills_all_but_the_last_layer(xception, tmp_path):
    """The published checkpoints have 19 or 21 classes, and variables that we do not need."""
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


def test_a_missing_or_unsuitable_source_is_named(xception, run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: init_from must be a run folder"):
        init_weights(xception, str(tmp_path / "nowhere"), LABELS)
    np.savez(tmp_path / "other.npz", stranger=np.zeros(3))
    before = weight_arrays(xception)
    with pytest.raises(ValueError, match=r"whole encoder; 660 of its 660 weights are missing"):
        init_weights(xception, str(tmp_path / "other.npz"), LABELS)
    for key, value in weight_arrays(xception).items():
        np.testing.assert_array_equal(value, before[key])
    untrained = replace(open_run(run_dir), run_dir=tmp_path / "run")
    store_run(untrained)
    with pytest.raises(FileNotFoundError, match="train first"):
        init_weights(xception, str(untrained.run_dir), LABELS)


def test_the_last_layer_is_kept_for_the_same_classes_only(run_dir, tmp_path):
    run = open_run(run_dir)
    model = build_model(replace(run.model, encoder_weights="none"), len(run.label_set.classes))
    assert len(init_weights(model, str(run_dir), run.label_set)) == 1
    (tmp_path / "link.npz").symlink_to(latest(run_dir) / "weights.npz")
    assert len(init_weights(model, str(tmp_path / "link.npz"), run.label_set)) == 1
    renamed = [replace(c, name=f"other-{c.name}") for c in run.label_set.classes]
    lines = init_weights(model, str(run_dir), replace(run.label_set, classes=tuple(renamed)))
    assert [line.split()[1] for line in lines[1:]] == [
        "logits-semantic/kernel",
        "logits-semantic/bias",
    ]
    assert all(line.endswith("(stored for other or unknown classes)") for line in lines[1:])


def test_another_encoder_is_refused_even_if_the_decoder_matches(run_dir):
    """Names and shapes of many weights match, but the encoder would stay random."""
    run = open_run(run_dir)
    other = replace(run.model, encoder="ddrnet23_slim", encoder_weights="none", output_stride=8)
    model = build_model(other, len(run.label_set.classes))
    shared = set(weight_arrays(model)) & set(read_weights(latest(run_dir)))
    assert "decoder-decoder_conv1_pointwise/kernel" in shared
    with pytest.raises(ValueError, match=r"whole encoder.*, \.\.\.\. Remedy: the same --encoder"):
        init_weights(model, str(run_dir), run.label_set)


def latest(run_dir):
    return checkpoints.find_checkpoint(run_dir, "latest")


def test_a_deeplab_checkpoint_for_another_encoder_is_named(run_dir, tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    first = np.zeros([3, 3, 3, 32], np.float32)
    write_deeplab_checkpoint(prefix, {"xception_65/entry_flow/conv1_1/weights": first})
    run = open_run(run_dir)
    model = build_model(replace(run.model, encoder_weights="none"), len(run.label_set.classes))
    with pytest.raises(ValueError, match=r"model\.ckpt: .*xception65"):
        init_weights(model, prefix, run.label_set)
