"""The export decodes files as inference does, with EXIF orientation, and returns the same ids."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mapseg.config import PredictConfig
from mapseg.estimator import Estimator
from mapseg.inference.export.saved_model import _decode
from mapseg.inference.orientation import read_orientation
from mapseg.inference.reading import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def encode(kind, orientation=None, **options):
    picture, exif = Image.fromarray(PIXELS).resize((48, 32)), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        exif[0x010F] = "a maker, before the tag"
        options["exif"] = exif
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def with_exif(tiff, before=b""):
    """A JPEG with the given EXIF data, after other segments."""
    plain = encode("JPEG")
    body = b"Exif\0\0" + tiff
    return plain[:2] + before + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


def assert_decoded_as_by_inference(data, path):
    path.write_bytes(data)
    np.testing.assert_array_equal(tf.function(_decode)(tf.constant(data)), read_image(path))


@pytest.mark.addons
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_orientations_are_applied_as_by_inference(tmp_path, kind, orientation):
    data = encode(kind, orientation)
    assert_decoded_as_by_inference(data, tmp_path / "frame")
    shape = read_image(tmp_path / "frame").shape
    assert shape == ((48, 32, 3) if (orientation or 1) > 4 else (32, 48, 3))


ENTRY = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)


@pytest.mark.parametrize(
    ("data", "orientation"),
    [
        (b"", 1),
        (b"\xff\xd8\xff", 1),
        (b"\xff\xd8\xff\xe1\x00\x00", 1),
        (encode("JPEG")[:30], 1),
        (encode("JPEG"), 1),
        (encode("BMP"), 1),
        (encode("JPEG", 6, progressive=True), 6),
        (with_exif(b"MM\0*\0\0\0\x08\0\x01" + ENTRY), 6),
        (with_exif(b"MM\0*\0\0\0\x08\0\x01" + ENTRY, b"\xff\xfe\0\x06note"), 6),
        (with_exif(b"MM\0*\0\0\0\x08\0\x01" + ENTRY, b"\xff\xff\xff\xfe\0\x02"), 6),
        (with_exif(b"MM\0*\0\0\0\x0c----\0\x01" + ENTRY), 6),
        (with_exif(b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 8, 0)), 8),
        (with_exif(b"MM\0*\0\0\0\x08\0\x01" + ENTRY.replace(b"\0\x06", b"\0\x09")), 1),
        (with_exif(b"MM\0*\0\0\0\x08\xff\xff" + ENTRY), 6),
        (with_exif(b"MM\0*\xff\xff\xff\xff\0\x01" + ENTRY), 1),
        (with_exif(b"??\0*\0\0\0\x08\0\x01" + ENTRY), 1),
        (encode("PNG", 5), 5),
        (encode("PNG", 5)[:60], 1),
    ],
)
def test_orientation_is_read_from_any_bytes(data, orientation):
    assert int(read_orientation(tf.constant(data))) == orientation


def test_16_bit_images_are_decoded_as_by_inference(tmp_path):
    full = PIXELS[..., 0].astype(np.uint16) * 257
    Image.fromarray(full).save(tmp_path / "full.png")
    assert_decoded_as_by_inference((tmp_path / "full.png").read_bytes(), tmp_path / "frame")
    data = io.BytesIO()
    Image.fromarray(full // 16).save(data, "PNG")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"use the full range of 16.*Remedy"):
        tf.function(_decode)(tf.constant(data.getvalue()))


# Does what TensorFlow Serving does with {"instances": [{"b64": ...}]}, with TensorFlow only.
_SERVE = """
import sys
import numpy as np
sys.modules["mapseg"] = None
import tensorflow as tf
saved = tf.saved_model.load(sys.argv[1])
files = [tf.io.read_file(path) for path in sys.argv[3:]]
serve = saved.signatures["encoded"]
ids = serve(encoded=tf.stack(files))["ids"]
assert (serve(encoded=files[0])["ids"].numpy() == ids[0].numpy()).all()
assert (saved.segment_encoded(files[1])["ids"].numpy() == ids[1].numpy()).all()
np.save(sys.argv[2], ids.numpy())
"""


@pytest.mark.addons
def test_encoded_files_are_served_with_the_ids_of_inference(run_dir, tmp_path):
    estimator = Estimator(run_dir, progress=print)
    config = PredictConfig(tile_px=65)
    exported = estimator.export(tmp_path / "export", config)
    paths = [tmp_path / "phone.jpg", tmp_path / "phone.png"]
    paths[0].write_bytes(encode("JPEG", 6))
    paths[1].write_bytes(encode("PNG", 8))
    arguments = [str(path) for path in (exported, tmp_path / "ids.npy", *paths)]
    subprocess.run([sys.executable, "-c", _SERVE, *arguments], check=True, cwd=tmp_path)
    served = np.load(tmp_path / "ids.npy")
    assert served.shape == (2, 48, 32)
    for path, ids in zip(paths, served, strict=True):
        np.testing.assert_array_equal(ids, estimator.predict(read_image(path), config).ids)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_cmyk_is_rejected_because_its_ids_would_differ(options):
    data = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(data, "JPEG", **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"got CMYK.*Remedy: save it as RGB"):
        tf.function(_decode)(tf.constant(data.getvalue()))


def test_an_animated_png_is_refused():
    frame = Image.fromarray(PIXELS)
    for appended, count in (([Image.fromarray(PIXELS[::-1])], 2), ([], 1)):
        data = io.BytesIO()
        frame.save(data, "PNG", save_all=True, append_images=appended)
        if count == 1:
            np.testing.assert_array_equal(tf.function(_decode)(data.getvalue()), PIXELS)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match="got an animated one"):
                tf.function(_decode)(tf.constant(data.getvalue()))


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_truncated_jpeg_is_rejected(options, share):
    data = encode("JPEG", quality=95, **options)
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(_decode)(tf.constant(data[: int(share * len(data))]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_kind_of_png_is_decoded_as_by_inference(tmp_path, mode):
    data = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(data, "PNG")
    assert_decoded_as_by_inference(data.getvalue(), tmp_path / "frame")


@pytest.mark.parametrize("data", [encode("WEBP"), encode("GIF"), encode("BMP"), b"text", b""])
def test_other_file_formats_are_rejected(data):
    """TensorFlow would decode some of them, to other shapes."""
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be a JPEG or PNG; got another"):
        tf.function(_decode)(tf.constant(data))
