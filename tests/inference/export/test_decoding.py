"""Exports decode files as inference does, with EXIF orientation, and reject what it rejects."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mapseg.inference.export.decoding import MAX_PIXELS, decode
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


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def decoded(data):
    return decode(data, "frame 7")


def assert_decoded_as_by_inference(data, path):
    path.write_bytes(data)
    np.testing.assert_array_equal(decoded(data), read_image(path))


def assert_rejected(data, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"\[frame 7: {message}"):
        decoded(data)


@pytest.mark.addons
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientations_are_applied_as_by_inference(tmp_path, kind):
    for orientation in (None, *range(1, 9)):
        assert_decoded_as_by_inference(encode(kind, orientation), tmp_path / "frame")
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
    assert_rejected(
        data.getvalue(), "an image must have 8 bits, or use the full range of 16.*Remedy"
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_cmyk_is_rejected_because_its_ids_would_differ(options):
    data = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(data, "JPEG", **options)
    assert_rejected(data.getvalue(), "a JPEG must be .* got CMYK.*Remedy: save it as RGB")


def test_an_animated_png_is_refused():
    frame = Image.fromarray(PIXELS)
    for appended, count in (([Image.fromarray(PIXELS[::-1])], 2), ([], 1)):
        data = io.BytesIO()
        frame.save(data, "PNG", save_all=True, append_images=appended)
        if count == 1:
            np.testing.assert_array_equal(decoded(data.getvalue()), PIXELS)
        else:
            assert_rejected(data.getvalue(), "a PNG must hold one picture; got an animated one")


def test_a_truncated_file_is_rejected():
    """Not even an embedded preview, which has an end, makes it complete."""
    preview = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"
    jpegs = [encode("JPEG", quality=95, progressive=progressive) for progressive in (False, True)]
    for data in (encode("PNG", 6), *(jpeg[:2] + preview + jpeg[2:] for jpeg in jpegs)):
        assert decoded(data).shape[2] == 3
        for count in (-1, -2, -13, -200, 200, 30, 8, 4):
            assert_rejected(data[:count], "a JPEG or PNG must be complete; got a truncated file")


def test_bytes_after_the_end_are_ignored(tmp_path):
    """As phones append them."""
    for kind in ("JPEG", "PNG"):
        assert_decoded_as_by_inference(encode(kind) + bytes(100), tmp_path / "frame")


def png(width, height):
    """A PNG whose header states a size, with few pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def jpeg(width, height):
    """A JPEG whose header states a size, with few pixels."""
    data = encode("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.addons
def test_images_without_pixels_or_with_too_many_are_rejected():
    """Before memory is allocated for them."""
    assert 2 * Image.MAX_IMAGE_PIXELS == MAX_PIXELS
    for data, size in (
        (png(5, 0), "0 x 5"),
        (png(0, 5), "5 x 0"),
        (png(2**31, 1), "1 x -2147483648"),
        (png(2**16, 2**16), "65536 x 65536"),
        (jpeg(0, 5), "5 x 0"),
        (jpeg(5, 0), "0 x 5"),
        (jpeg(65_535, 65_535), "65535 x 65535"),
    ):
        message = f"an image must have 1 to 178956970 pixels; got height x width {size}"
        assert_rejected(data, rf"{message}\]")


def test_an_image_of_one_pixel_is_decoded(tmp_path):
    data = io.BytesIO()
    Image.fromarray(PIXELS[:1, :1]).save(data, "PNG")
    assert_decoded_as_by_inference(data.getvalue(), tmp_path / "frame")


def test_every_kind_of_png_is_decoded_as_by_inference(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        data = io.BytesIO()
        Image.fromarray(PIXELS).convert(mode).save(data, "PNG")
        assert_decoded_as_by_inference(data.getvalue(), tmp_path / "frame")


def test_other_file_formats_are_rejected():
    """TensorFlow would decode some of them, to other shapes."""
    for data in (encode("WEBP"), encode("GIF"), encode("BMP"), b"text", b""):
        assert_rejected(data, "a file must be a JPEG or PNG; got another kind")
