import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from mapseg.config import PredictConfig
from mapseg.data.manifest import read_manifest
from mapseg.data.whole_samples import read_places
from mapseg.estimator import Estimator
from mapseg.inference.export.check import cut
from mapseg.inference.export.check_frames import read_check_frames
from mapseg.inference.export.source import Source
from mapseg.inference.predictor import Predictor
from mapseg.pictures import write_jpg
from mapseg.runs.folder import open_run


def test_tiles_scales_and_mirror_images_are_fixed_in_an_export(tiny_run, tiny_encoder, tmp_path):
    estimator = Estimator(tiny_run, progress=lambda _: None)
    config = PredictConfig(tile_px=65, scales="0.5,1", flip_average=True)
    path = estimator.export(tmp_path / "export", config)
    assert json.loads((path / "labels.json").read_text()) == estimator.run.label_set.to_json()
    images = np.random.default_rng(0).integers(0, 256, [2, 50, 91, 3], np.uint8)
    ids = tf.saved_model.load(str(path)).segment(images)["ids"].numpy()
    for image, image_ids in zip(images, ids, strict=True):
        np.testing.assert_array_equal(image_ids, estimator.predict(image, config).ids)
    assert (ids != estimator.predict(images[0], PredictConfig()).ids).any()


def test_a_folder_with_other_files_is_refused_before_any_work(tiny_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "saved_model.pb").write_text("somebody else's")
    with pytest.raises(ValueError, match="export_dir must be new"):
        Estimator(tiny_run).export(tmp_path)
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
def test_the_scale_of_an_export_is_that_of_the_networks_input(tiny_run, options, scale):
    assert Source(open_run(tiny_run), tiny_run, PredictConfig(**options)).scale == scale


def test_frames_come_from_the_requested_source(tiny_run, records_dir, tmp_path):
    run = open_run(tiny_run)
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


def test_a_split_that_the_records_lack_is_named(tiny_run, records_dir, tmp_path):
    with pytest.raises(ValueError, match="testing"):
        Estimator(tiny_run).export(tmp_path / "e", records_dir=records_dir, split="testing")
    assert list(tmp_path.iterdir()) == []


def test_frames_of_a_single_class_check_nothing(tiny_run, tiny_encoder, tmp_path, monkeypatch):
    (tmp_path / "frames").mkdir()
    write_jpg(tmp_path / "frames" / "0.jpg", np.zeros([40, 60, 3], np.uint8))

    def one_class(self, image):
        return SimpleNamespace(ids=np.zeros(image.shape[:2], np.uint8))

    monkeypatch.setattr(Predictor, "segment", one_class)
    with pytest.raises(ValueError, match=r"must show more than one class.*--records_dir"):
        Estimator(tiny_run).export(tmp_path / "export", check_frames=str(tmp_path / "frames"))
    assert {p.name for p in tmp_path.iterdir()} == {"frames"}


def test_a_format_that_disagrees_is_not_written(
    tiny_run, tiny_encoder, records_dir, tmp_path, monkeypatch
):
    """The records give the frames, and a former export is kept."""
    (tmp_path / "export").mkdir()
    for name in ("labels.json", "saved_model.pb"):
        (tmp_path / "export" / name).write_text("former")
    monkeypatch.setattr(Source, "segment", lambda self, images: images[..., 0] // 128)
    lines = []
    with pytest.raises(ValueError, match=r"at least 99.9% of the ids of format onnx .* got \d"):
        Estimator(tiny_run, lines.append).export(
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
