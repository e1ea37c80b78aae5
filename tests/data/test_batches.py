import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from conftest import ROOT, make_tiny_records
from records_by_hand import CLASSES, scene, write_records

from mapseg import cli
from mapseg.config import TrainConfig
from mapseg.data import batches as pipeline
from mapseg.data.batches import CropStream, parallel_reads, read_samples, train_batches
from mapseg.data.manifest import read_manifest, shard_name
from mapseg.data.samples import parse_sample
from mapseg.data.shards import read_record
from mapseg.labels import VOID, LabelSet, make_label_set
from mapseg.machine import cores


def config(**options):
    return TrainConfig(**{"crop_height": 33, "crop_width": 41, "batch_size": 2, **options})


def crop_stream(records_dir, train_config):
    manifest = read_manifest(records_dir)
    return CropStream(
        manifest, train_config, make_label_set(manifest.classes, train_config.label_set)
    )


def batches(records_dir, count, start_step=0, **options):
    stream = train_batches(records_dir, config(**options), start_step).as_numpy_iterator()
    return list(itertools.islice(stream, count))


@pytest.mark.addons
def test_batches_have_the_promised_shapes_and_ids(records_dir):
    for image, label in batches(records_dir, 3):
        assert image.shape == (2, 33, 41, 3)
        assert label.shape == (2, 33, 41)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= {0, 1, 2, VOID}


def test_a_stream_that_starts_late_is_the_same_stream(records_dir):
    whole, late = batches(records_dir, 10), batches(records_dir, 4, start_step=6)
    for (image, label), (late_image, late_label) in zip(whole[6:], late, strict=True):
        np.testing.assert_array_equal(image, late_image)
        np.testing.assert_array_equal(label, late_label)


def test_the_seed_and_the_step_change_the_batch(records_dir):
    first, second = batches(records_dir, 2)
    (other,) = batches(records_dir, 1, seed=2)
    assert np.any(first[0] != second[0])
    assert np.any(first[0] != other[0])


def test_labels_follow_the_label_set(records_dir):
    for _, label in batches(records_dir, 3, label_set="lane_marking"):
        assert set(np.unique(label)) <= {0, 1, VOID}


def test_missing_records_and_splits_are_named(records_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="build_records"):
        train_batches(tmp_path, config())
    with pytest.raises(ValueError, match="holidays"):
        train_batches(records_dir, config(train_split="holidays"))


def assert_equal(actual, expected):
    for (image, label), (other_image, other_label) in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(label, other_label)


def test_two_hundred_steps_do_not_depend_on_restarts_or_readers(records_dir, monkeypatch):
    options = {"crop_height": 17, "crop_width": 17, "class_balance": 0.3, "crops_per_read": 2}
    whole = batches(records_dir, 200, **options)
    assert_equal(batches(records_dir, 100, start_step=100, **options), whole[100:])
    for readers in (1, 2):
        monkeypatch.setattr(pipeline, "parallel_reads", lambda *_, n=readers: n)
        assert_equal(batches(records_dir, 200, **options), whole)


@pytest.mark.parametrize("crops_per_read", [1, 2])
def test_workers_read_shares_that_make_up_the_batch(records_dir, crops_per_read):
    train_config = config(batch_size=8, crops_per_read=crops_per_read)
    whole = batches(records_dir, 3, batch_size=8, crops_per_read=crops_per_read)
    stream = crop_stream(records_dir, train_config)
    shares = [
        list(itertools.islice(stream.batches(0, w, 4).as_numpy_iterator(), 3)) for w in range(4)
    ]
    joined = [
        tuple(map(np.concatenate, zip(*step, strict=True))) for step in zip(*shares, strict=True)
    ]
    assert_equal(joined, whole)
    with pytest.raises(ValueError, match=r"must be a multiple of .* workers, . x 3; got 8"):
        stream.batches(0, 0, 3)


def test_crops_of_one_read_differ_and_share_their_sample(records_dir, monkeypatch):
    read = []
    monkeypatch.setattr(pipeline, "read_record", lambda i, n: read.append(n) or read_record(i, n))
    monkeypatch.setattr(pipeline, "parallel_reads", lambda *_: 1)
    ((images, _), *_) = batches(records_dir, 3, batch_size=6, crops_per_read=3, color_jitter=0.0)
    assert len({image.tobytes() for image in images}) == 6
    assert sorted(read[:6]) == list(range(6))  # two of them a batch, an epoch in three


@pytest.mark.parametrize("options", [{}, {"class_balance": 0.5, "crops_per_read": 2}])
def test_the_samples_of_a_batch_can_be_named(records_dir, monkeypatch, options):
    read, train_config = [], config(batch_size=4, **options)
    keys = crop_stream(records_dir, train_config).keys(5)

    def parse(record):
        read.append(parse_sample(record))
        return read[-1]

    monkeypatch.setattr(pipeline, "parse_sample", parse)
    monkeypatch.setattr(pipeline, "parallel_reads", lambda *_: 1)
    next(train_batches(records_dir, train_config, 5).as_numpy_iterator())
    assert keys == [sample.key for sample in read[: len(keys)]]
    assert len(keys) == 4 // train_config.crops_per_read


@pytest.mark.parametrize("label_set", ["all", "lane_marking"])
def test_class_balance_shows_every_class(records_dir, label_set):
    """Few crops of 9x9 pixels show a rare class unless classes are balanced."""
    options = {"crop_height": 9, "crop_width": 9, "batch_size": 30, "label_set": label_set}
    labels = make_label_set(read_manifest(records_dir).classes, label_set)

    def shares(balance):
        ids = np.concatenate(
            [ids for _, ids in batches(records_dir, 4, class_balance=balance, **options)]
        )
        return np.array([np.mean((ids == c.id).any(axis=(1, 2))) for c in labels.classes])

    plain, balanced = shares(0.0), shares(1.0)
    assert balanced.min() >= 1 / len(labels.classes)
    assert plain.min() < 1 / len(labels.classes)


def test_a_broken_record_ends_a_program_in_one_clear_line(tmp_path, capsys):
    records = make_tiny_records(tmp_path)
    path = min(records.glob("training*.tfrecord"))
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    capsys.readouterr()
    assert cli.run(lambda _: batches(records, 3), flags.FlagValues(), ["train"], "about") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: damaged: wrong checksum of the record at byte ")
    assert error.count("\n") == 1
    assert "Remedy" in error
    assert "Traceback" not in error


def test_memory_bounds_the_reads_ahead(records_dir):
    split = read_manifest(records_dir).split("training")
    assert parallel_reads(config(), split, 16, 0) == cores()
    large = dataclasses.replace(split, sizes={(3456, 4608): 3, (60, 80): 1})
    # 8 bytes for each of 16 million pixels and 3 copies of a crop: 124.5 MB a read; batches 64 MB.
    crop = {"crop_height": 513, "crop_width": 513}
    assert parallel_reads(config(input_memory_mb=330, **crop), large, 16, 0) == 2
    assert parallel_reads(config(input_memory_mb=330, **crop), large, 16, 30 << 20) == 1
    with pytest.raises(
        ValueError, match=r"input_memory_mb must be at least 189 .*4608x3456.*got 9"
    ):
        parallel_reads(config(input_memory_mb=9, **crop), large, 16, 0)


def test_a_program_may_end_while_crops_are_made(records_dir):
    script = """
import sys
import tracemalloc
from mapseg import config
from mapseg.data import batches as pipeline
batches = iter(pipeline.train_batches(sys.argv[1], config.TrainConfig(batch_size=2)))
next(batches)
"""
    command = [sys.executable, "-c", script, str(records_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=1200)
    assert done.returncode == 0


def test_samples_come_in_stored_order_with_train_ids(tmp_path):
    write_records(tmp_path)
    samples = list(read_samples(tmp_path, "training"))
    assert [name.numpy().decode() for *_, name in samples] == ["-key_0", "-key_1", "-key_2"]
    for i, (image, label, _) in enumerate(samples):
        assert image.dtype == label.dtype == tf.uint8
        np.testing.assert_array_equal(image, scene(i)[0])
        np.testing.assert_array_equal(label, np.array([0, 1, VOID])[scene(i)[1]])


def test_a_custom_label_set(tmp_path):
    write_records(tmp_path)
    mapping = (1, 0) + (VOID,) * 254
    swapped = LabelSet("swapped", CLASSES[:2], mapping)
    _, label, _ = next(iter(read_samples(tmp_path, "training", swapped)))
    np.testing.assert_array_equal(label, np.array([1, 0, VOID])[scene(0)[1]])


def test_a_missing_shard_is_named(tmp_path):
    write_records(tmp_path)
    (tmp_path / shard_name("training", 1, 2)).unlink()
    with pytest.raises(FileNotFoundError, match=r"training-00001-of-00002\.tfrecord"):
        read_samples(tmp_path, "training")
