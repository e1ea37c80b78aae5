import subprocess
import sys

import numpy as np
import pytest

from mapseg.config import PredictConfig
from mapseg.data.manifest import read_manifest
from mapseg.data.whole_samples import read_places
from mapseg.estimator import Estimator
from mapseg.inference.export.check import cut
from mapseg.inference.export.check_frames import read_check_frames
from mapseg.inference.export.source import Source
from mapseg.inference.reading import read_image
from mapseg.pictures import write_jpg
from mapseg.runs.folder import open_run

# Serves the export with TensorFlow only; mapseg cannot be imported.
_SERVE = """
import sys
import numpy as np
sys.modules["mapseg"] = None
import tensorflow as tf
saved = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2])
serve = saved.signatures["serving_default"]
np.save(sys.argv[3], serve(images=tf.constant(images))["ids"].numpy())
files = tf.stack([tf.io.encode_png(images[0]), tf.io.read_file(sys.argv[4])])
ids = saved.segment_encoded(files)["ids"].numpy()
assert (ids[0] == np.load(sys.argv[3])[0]).all()
np.save(sys.argv[5], ids[1])
"""


def test_an_export_returns_the_same_ids_without_mapseg(run_dir, tmp_path):
    estimator = Estimator(run_dir, progress=print)
    config = PredictConfig(tile_px=65, scales="0.5,1", flip_average=True)
    path = estimator.export(tmp_path / "export", config)
    assert (path / "labels.json").is_file()
    images = np.random.default_rng(0).integers(0, 256, [2, 50, 91, 3], np.uint8)
    np.save(tmp_path / "images.npy", images)
    names = ("images.npy", "ids.npy", "frame.jpg", "frame.npy")
    arguments = [str(path), *(str(tmp_path / name) for name in names)]
    write_jpg(tmp_path / "frame.jpg", images[1])
    subprocess.run([sys.executable, "-c", _SERVE, *arguments], check=True, cwd=tmp_path)
    ids = np.load(tmp_path / "ids.npy")
    assert ids.shape == (2, 50, 91)
    for image, image_ids in zip(images, ids, strict=True):
        np.testing.assert_array_equal(image_ids, estimator.predict(image, config).ids)
    frame = read_image(tmp_path / "frame.jpg")  # as infer_main.py decodes it
    np.testing.assert_array_equal(
        np.load(tmp_path / "frame.npy"), estimator.predict(frame, config).ids
    )


def test_a_folder_with_other_files_is_refused_before_any_work(run_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "saved_model.pb").write_text("somebody else's")
    with pytest.raises(ValueError, match="export_dir must be new"):
        Estimator(run_dir).export(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.txt", "saved_model.pb"}


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, "auto"),
        ({"scales": "0.5"}, "auto*0.5"),
        ({"scale": "0.8"}, "0.8"),
        ({"scale": "0.8", "scales": "0.5"}, "0.4"),
        ({"scale": "0.8", "scales": "0.5,1"}, "0.8"),
    ],
)
def test_the_scale_of_an_export_is_that_of_the_networks_input(run_dir, options, scale):
    assert Source(open_run(run_dir), run_dir, PredictConfig(**options)).scale == scale


def test_frames_come_from_the_requested_source(run_dir, records_dir, tmp_path):
    run = open_run(run_dir)
    (tmp_path / "frames").mkdir()
    for i in range(9):
        write_jpg(tmp_path / "frames" / f"{i}.jpg", np.full([30, 41, 3], 20 * i, np.uint8))
    frames = read_check_frames(run, str(tmp_path / "frames"), records_dir)
    assert [frame.shape for frame in frames] == [(30, 41, 3)] * 4
    assert len({int(frame[0, 0, 0]) for frame in frames}) == 4

    manifest = read_manifest(records_dir)
    split = manifest.split(run.train.eval_split)
    samples = read_places(manifest, split.name, run.label_set, range(split.samples))
    stored = [image for image, *_ in samples]
    frames = read_check_frames(run, "", records_dir)
    assert 0 < len(frames) == min(4, split.samples)
    for frame in frames:
        assert any(np.array_equal(frame, image) for image in stored)

    scripted = read_check_frames(run, "", None)
    assert len({frame.shape for frame in scripted}) == 4


def test_a_split_that_the_records_lack_is_named(run_dir, records_dir, tmp_path):
    with pytest.raises(ValueError, match="testing"):
        Estimator(run_dir).export(tmp_path / "e", records_dir=records_dir, split="testing")
    assert list(tmp_path.iterdir()) == []


def test_frames_of_a_single_class_check_nothing(run_dir, tmp_path):
    (tmp_path / "frames").mkdir()
    write_jpg(tmp_path / "frames" / "0.jpg", np.zeros([40, 60, 3], np.uint8))
    with pytest.raises(ValueError, match=r"must show more than one class.*--records_dir"):
        Estimator(run_dir).export(tmp_path / "export", check_frames=str(tmp_path / "frames"))
    assert {p.name for p in tmp_path.iterdir()} == {"frames"}


def test_a_format_that_disagrees_is_not_written(run_dir, records_dir, tmp_path, monkeypatch):
    """The records give the frames, and a former export is kept."""
    (tmp_path / "export").mkdir()
    for name in ("labels.json", "saved_model.pb"):
        (tmp_path / "export" / name).write_text("former")
    monkeypatch.setattr(Source, "segment", lambda self, images: images[..., 0] // 128)
    lines = []
    with pytest.raises(ValueError, match=r"at least 99.9% of the ids of format onnx .* got \d"):
        Estimator(run_dir, lines.append).export(
            tmp_path / "export", formats=["onnx"], records_dir=records_dir
        )
    assert {p.name for p in tmp_path.iterdir()} == {"export"}
    assert {p.read_text() for p in (tmp_path / "export").iterdir()} == {"former"}
    assert lines == []


@pytest.mark.parametrize(
    ("size", "options", "kept"),
    [
        ((3000, 4000), {"scale": "1"}, (262, 4000)),
        ((4000, 3000), {"scale": "auto"}, (4000, 262)),
        # Without tiles, the logits of the image's own pixels are in memory too.
        ((3000, 4000), {"scale": "0.25"}, (262, 4000)),
        ((3000, 4000), {"scale": "1", "scales": "2"}, (65, 4000)),
        ((900, 1000), {"scale": "1"}, (900, 1000)),
    ],
)
def test_large_frames_are_cut_beside_their_longer_side(size, options, kept):
    frame = np.zeros([*size, 3], np.uint8)
    assert cut(frame, PredictConfig(**options), long_side_px=4000).shape == (*kept, 3)
