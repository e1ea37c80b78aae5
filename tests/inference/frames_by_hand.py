"""Frames with a known segmentation, and helpers to run inference on them."""

import csv

import cv2
import numpy as np
from PIL import Image

from mapseg.config import InferConfig
from mapseg.inference.frames import find_frames
from mapseg.inference.infer import infer_frames
from mapseg.inference.output_classes import output_classes
from mapseg.inference.predictor import Segmentation
from mapseg.labels import LabelClass, LabelSet
from mapseg.mapping import read_mapping

LABEL_SET = LabelSet(
    "tiny",
    (LabelClass(0, "road, dark", (128, 64, 128)), LabelClass(1, "marking", (255, 255, 255))),
    tuple(range(256)),
)


def segment(image):
    """Segments bright pixels as marking."""
    ids = (image.mean(axis=-1) > 127).astype(np.uint8)
    return Segmentation(ids, 0.75, 0.5)


def write_image(path, size=(6, 10), bright=3):
    """Writes a grey image whose first `bright` columns are white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), 40, np.uint8)
    image[:, :bright] = 250
    assert cv2.imwrite(str(path), image)


def write_video(path, count=5, size=(32, 48), fps=12.0):
    """Writes a video in which each frame is brighter than the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size[::-1])
    for i in range(count):
        writer.write(np.full((*size, 3), 40 * i, np.uint8))
    writer.release()


def write_moving(path, code="mp4v", count=60):
    """Writes a video of a moving pattern."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    picture = cv2.resize(noise, (160, 120))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10.0, (160, 120))
    assert writer.isOpened()
    for i in range(count):
        writer.write(np.roll(picture, 3 * i, axis=1))
    writer.release()


def damage(path):
    """Overwrites bytes in the middle of a file."""
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(2000) + data[middle + 2000 :])


def cut(path, share=0.5):
    """Truncates a file."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def with_edit_list(data, first):
    """Makes an MP4 start at a later frame, as after a cut without re-encoding."""
    at = data.index(b"elst") + 4
    assert data[at : at + 8] == bytes(7) + b"\1"  # version 0, one entry: duration, then the start
    ticks = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big") * first // 10
    return data[: at + 12] + ticks.to_bytes(4, "big") + data[at + 16 :]


def config(frames, out_dir, **options):
    return InferConfig(frames=str(frames), out_dir=str(out_dir), **options)


def names(frames, out_dir="unused", **options):
    return [frame.name for frame in find_frames(config(frames, out_dir, **options)).frames]


def run(
    frames,
    out_dir,
    segment=segment,
    fingerprint="run 1, step 7",
    lines=None,
    label_set=LABEL_SET,
    **options,
):
    lines = [] if lines is None else lines
    infer_config = config(frames, out_dir, **options)

    def segment_batch(images):
        return [segment(image) for image in images]

    frame_list = find_frames(infer_config)
    mapping = read_mapping(infer_config.mapping) if infer_config.mapping else None
    classes = output_classes(label_set, mapping, infer_config.ids)
    return infer_frames(segment_batch, classes, frame_list, infer_config, lines.append, fingerprint)


def read_rows(out_dir):
    with (out_dir / "frames.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_ids(path):
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.asarray(picture)


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
