"""Shards: more than the process may open, compressed ones, and damaged records."""

import gc
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from data_prep.index_records import main as index_main
from data_prep.verify_records import verify_records
from mapseg.cli import one_line
from mapseg.config import TrainConfig
from mapseg.data.batches import read_samples, train_batches
from mapseg.data.manifest import MANIFEST_NAME, read_manifest
from mapseg.data.samples import encode_sample, parse_sample
from mapseg.data.shards import index_split, read_record, read_shard, write_shard
from mapseg.stored_json import with_sha256

SHARDS = 70
CONFIG = {name: TINY[name] for name in ("crop_height", "crop_width", "batch_size")}

MAKE = """
import sys
from pathlib import Path
from mapseg.data.manifest import Manifest, Split, read_manifest, shard_name, write_manifest
from mapseg.data.shards import index_split, read_record, write_shard
from mapseg.labels import LabelClass

folder, count = Path(sys.argv[1]), int(sys.argv[2])
shards = tuple(
    write_shard(folder / shard_name("a", i, count), [b"%d,%d" % (i, n) for n in range(3)])
    for i in range(count)
)
classes = (LabelClass(0, "road", (0, 0, 0)), LabelClass(1, "sky", (1, 1, 1)))
split = Split("a", shards, {"road": 0, "sky": 0}, {(4, 6): 3 * count}, {}, "t.npz", "")
write_manifest(Manifest(folder, "0", classes, {"a": split}, {}))
"""
READ = """
import random, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
index = index_split(read_manifest(folder), "a")
places = list(range(len(index)))
random.Random(0).shuffle(places)
assert [read_record(index, i) for i in places] == [b"%d,%d" % (i // 3, i % 3) for i in places]
"""


def run_python(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def many(tmp_path):
    run_python(MAKE, tmp_path, SHARDS)
    return tmp_path


def open_in(folder):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(str(link).startswith(str(folder)) for link in links)


def test_more_shards_than_the_process_may_open_are_read(tmp_path):
    run_python(MAKE + READ, tmp_path, SHARDS)


def test_threads_share_few_descriptors(many, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    index = index_split(read_manifest(many), "a")
    places = [i % len(index) for i in range(3 * len(index))]
    random.Random(0).shuffle(places)
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(partial(read_record, index), places))
    assert read == [b"%d,%d" % (i // 3, i % 3) for i in places]
    assert open_in(many) == 64 // 8
    del index, pool
    assert open_in(many) == 0


def test_few_shards_stay_open(many):
    index = index_split(read_manifest(many), "a")
    assert open_in(many) == 0
    for _ in range(2):
        for i in (0, 4, 8):
            read_record(index, i)
    assert open_in(many) == 3


@pytest.fixture
def records(records_dir, tmp_path):
    """A copy of the records that tests may damage."""
    return Path(shutil.copytree(records_dir, tmp_path / "records"))


PACKED = {
    "GZIP": gzip.compress,
    "ZLIB": zlib.compress,
    "ZLIB ": lambda data: zlib.compress(data, 1),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_compressed_shard_is_named(records, kind):
    path = records / read_manifest(records).splits["training"].shards[0].file
    path.write_bytes(PACKED[kind](path.read_bytes()))
    message = f"{path}: a shard must not be compressed; got {kind.strip()}. Remedy: write the"
    for read in (
        lambda: read_manifest(records),
        lambda: list(read_shard(path)),
        lambda: index_split(read_manifest(records, check_shards=False), "training"),
    ):
        with pytest.raises(ValueError) as caught:
            read()
        assert str(caught.value).startswith(message)
    manifest = read_manifest(records, check_shards=False)
    assert verify_records(manifest, lambda _: None)[0].startswith(message)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("GZIP", "val-00000-of-00001"),
        ("ZLIB", "val-00000-of-00001.tfrecord"),
        ("GZIP", "val-00000-of-00001.tfrecord.gz"),
    ],
)
def test_compressed_shards_are_not_indexed(records, tmp_path, capsys, kind, name):
    shard = records / read_manifest(records).splits["training"].shards[0].file
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_bytes(PACKED[kind](shard.read_bytes()))
    table = f"--classes={ROOT / 'data_prep/vistas_v1.2.json'}"
    assert index_main(["index_records", f"--records_dir={tmp_path / 'r'}", table]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert f"{name}: " in line and f"must not be compressed; got {kind}. Remedy: write the" in line


def spoil(records, split, change):
    """Replaces the first record of a split, and updates the checksums of shard and manifest."""
    raw = json.loads((records / MANIFEST_NAME).read_text())
    entry = raw["splits"][split]["shards"][0]
    path = records / entry["file"]
    first, *rest = read_shard(path)
    sample = parse_sample(first)
    entry.update(vars(write_shard(path, [change(sample), *rest])))
    del raw["sha256"]
    (records / MANIFEST_NAME).write_text(json.dumps(with_sha256(raw)))
    return path


def failure(read):
    """Returns the last line of a program that fails, and releases the error.

    Its traceback refers to the iterator, which must not be collected by one of its own threads.
    """
    line = ""
    try:
        read()
    except Exception as error:  # TensorFlow's, with the text of Python's within
        line = one_line(error)
    gc.collect()
    return line


def changed(**fields):
    def change(sample):
        values = {"image": sample.image, "label": sample.label, "tiles": sample.tiles, **fields}
        image, label, tiles = values["image"], values["label"], values["tiles"]
        return encode_sample(
            sample.key, image, "jpeg", values.get("size", sample.size), 3, label, tiles
        )

    return change


SPOILED = {
    "no example": (
        lambda _: b"\xff\xff",
        ": must be a valid sample; got: must be a tf.train.Example",
    ),
    "no image": (
        lambda _: b"",
        ": must be a valid sample; got: a record must have the field image/",
    ),
    "broken image": (changed(image=b"\xff\xd8\xffabc"), ", {key}: must be a valid sample; got: "),
    "broken label": (
        changed(label=b"abc", tiles=()),
        ", {key}: must be a valid sample; got: the label must be a valid 8-bit greyscale PNG",
    ),
    "broken tiles": (changed(tiles=(b"abc",)), ", {key}: must be a valid sample; got: a tile must"),
    "another size": (changed(size=(61, 80), tiles=()), ", {key}: must be a valid sample; got: the"),
}


@pytest.mark.parametrize("case", [case for case in SPOILED if case != "broken tiles"])
def test_evaluation_names_a_broken_record(records, case):
    change, message = SPOILED[case]
    path = spoil(records, "validation", change)
    line = failure(lambda: list(read_samples(records, "validation")))
    assert line.startswith(f"{path}: record 0{message.format(key='validation-0')}")
    assert "Remedy: python -m data_prep.verify_records" in line


@pytest.mark.parametrize("case", SPOILED)
def test_training_names_a_broken_record(records, case):
    change, message = SPOILED[case]
    path = spoil(records, "training", change)
    line = failure(lambda: list(train_batches(records, TrainConfig(**CONFIG)).take(6)))
    assert line.startswith(f"{path}: record 0{message.format(key='training-0')}")
