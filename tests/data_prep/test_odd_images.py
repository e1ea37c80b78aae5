"""Damaged and odd images: conversion and verify_records store them correctly or name them."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from conftest import LABELS, SHARED, tiny_scene
from PIL import Image

from data_prep.build_records import main
from data_prep.convert import Resize, convert_pair
from data_prep.facts import MADE_UPRIGHT
from data_prep.inspection import inspect_record
from data_prep.verify_records import verify_records
from mapseg.data.manifest import read_manifest, write_manifest
from mapseg.data.pairing import Pair, find_pairs
from mapseg.data.samples import encode_sample, parse_sample
from mapseg.data.shards import write_shard
from mapseg.labels import LabelClass, parse_class_table, read_class_table

CLASSES = parse_class_table({"labels": LABELS}, "here")
IDS = tiny_scene(np.random.default_rng(5))[1]
SIZE = IDS.shape


def encoded(pixels, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(seed=0):
    small = np.random.default_rng(seed).integers(60, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize(SIZE[::-1]))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(pixels, color_type):
    """A PNG of 16 bits per channel, [H, W, channels] uint16."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_marker_beyond_the_end(data):
    middle = len(data) // 2
    return data[:middle] + b"\xff\xe1\xff\xff" + data[middle:]


DAMAGES = {
    "a marker beyond the end": with_marker_beyond_the_end,
    "cut in the middle": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-2],
    "zeros within": lambda data: data[: len(data) // 2] + bytes(40) + data[len(data) // 2 :],
    "bytes lost": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 60 :],
}


@pytest.fixture
def pair(tmp_path):
    """An image and its label; tests replace either."""
    for name, data in (("a.jpg", encoded(picture())), ("a.png", encoded(IDS, "PNG"))):
        (tmp_path / name).write_bytes(data)
    return Pair("a", tmp_path / "a.jpg", tmp_path / "a.png")


def convert(pair, resize=None, classes=CLASSES):
    return convert_pair(pair, resize or Resize(), classes)


def build(folder, *options):
    (folder / "classes.json").write_text(json.dumps({"labels": LABELS}))
    return main(
        [
            "build_records",
            f"--image_dir={folder / 'images'}",
            f"--label_dir={folder / 'labels'}",
            f"--classes={folder / 'classes.json'}",
            "--split=training",
            f"--records_dir={folder / 'r'}",
            "--workers=1",
            *options,
        ]
    )


def save_good_pairs(folder, count=2):
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for i in range(count):
        (folder / f"images/{i}.jpg").write_bytes(encoded(picture(i)))
        (folder / f"labels/{i}.png").write_bytes(encoded(IDS, "PNG"))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("resize", [Resize(), Resize(max_side=40)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_jpeg_is_named(pair, damage, resize, progressive):
    good = encoded(picture(), quality=95, progressive=progressive)
    pair.image_path.write_bytes(DAMAGES[damage](good))
    with pytest.raises(
        ValueError, match=r"a\.jpg: must be a valid JPEG or PNG image; got: .*Remed"
    ):
        convert(pair, resize)


def test_a_damaged_jpeg_is_left_out_or_stops_the_conversion(tmp_path, capsys):
    save_good_pairs(tmp_path, 3)
    path = tmp_path / "images/1.jpg"
    path.write_bytes(with_marker_beyond_the_end(path.read_bytes()))
    assert build(tmp_path) == 1
    assert f"{path}: must be a valid JPEG" in capsys.readouterr().err
    assert build(tmp_path, "--on_error=skip") == 0
    split = read_manifest(tmp_path / "r").splits["training"]
    assert split.samples == 2 and list(split.left_out) == ["1"]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}, {"quality": 5}])
def test_valid_jpegs_of_any_kind_keep_their_bytes(pair, options):
    data = encoded(picture(), **options) + b"what some cameras add"
    pair.image_path.write_bytes(data)
    assert parse_sample(convert(pair)[0]).image == data


def record_of(image, label=None, size=SIZE):
    label = encoded(IDS, "PNG") if label is None else label
    return encode_sample("key", image, "jpeg", size, 3, label, [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_a_damaged_jpeg(damage):
    data = DAMAGES[damage](encoded(picture(), quality=95))
    with pytest.raises(ValueError, match="key: image and label must be decodable; got"):
        inspect_record(record_of(data), range(4))


def test_verify_names_a_damaged_jpeg_in_a_records_folder(tmp_path):
    """An earlier version converted such files."""
    save_good_pairs(tmp_path)
    assert build(tmp_path) == 0
    manifest = read_manifest(tmp_path / "r")
    split = manifest.splits["training"]
    data = with_marker_beyond_the_end(encoded(picture()))
    shard = write_shard(tmp_path / "r" / split.shards[1].file, [record_of(data)])
    object.__setattr__(split, "shards", (split.shards[0], shard))
    write_manifest(manifest)
    (problem,) = verify_records(read_manifest(tmp_path / "r"), lambda _: None)
    assert f"{shard.file}: record 0: key: image and label must be decodable; got Corrupt" in problem


@pytest.mark.parametrize(("channels", "color_type"), [(1, 0), (3, 2), (2, 4), (4, 6)])
def test_more_than_8_bits_are_refused(pair, channels, color_type):
    twelve_bits = np.full((*SIZE, channels), 0x0800, np.uint16)
    data = png16(twelve_bits, color_type)
    pair.image_path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.jpg: .* at most 8 bits per channel; got a PNG .* 16"):
        convert(pair)
    with pytest.raises(
        ValueError, match="key: an image must have at most 8 bits per channel; got 16"
    ):
        inspect_record(record_of(data), range(4))


def huge_png():
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg():
    data = bytearray(encoded(picture()))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


@pytest.mark.parametrize("bomb", [huge_png, huge_jpeg])
@pytest.mark.parametrize("what", ["images/1.jpg", "labels/1.png"])
def test_only_the_pair_of_an_image_that_would_fill_the_memory_is_lost(tmp_path, capsys, bomb, what):
    save_good_pairs(tmp_path)
    (tmp_path / what).write_bytes(bomb())
    assert build(tmp_path) == 1
    message = capsys.readouterr().err
    assert what in message
    assert "too many pixels" in message or "must be a PNG of ids" in message
    assert build(tmp_path, "--on_error=skip") == 0
    assert list(read_manifest(tmp_path / "r").splits["training"].left_out) == ["1"]


def test_verify_names_what_would_fill_the_memory():
    for image, label in ((huge_jpeg(), None), (huge_png(), None), (encoded(picture()), huge_png())):
        with pytest.raises(ValueError, match=r"key: .*too many pixels|key: .*PNG of ids"):
            inspect_record(record_of(image, label), range(4))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_honoured(pair, kind, orientation):
    upright = picture()
    turns = {3: 2, 6: 1, 8: 3}[orientation]  # quarter turns left give the stored pixels
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    pair.image_path.write_bytes(
        encoded(np.rot90(upright, turns).copy(), kind, exif=exif, **options)
    )
    record, facts = convert(pair)
    assert facts.orientation == MADE_UPRIGHT
    stored = np.asarray(Image.open(io.BytesIO(parse_sample(record).image))).astype(int)
    assert np.abs(stored - upright).mean() < 2


def test_a_label_with_an_orientation_is_refused(pair):
    exif = Image.Exif()
    exif[274] = 3
    pair.label_path.write_bytes(encoded(IDS, "PNG", exif=exif))
    with pytest.raises(ValueError, match=r"a\.png: a label must be stored upright; got an EXIF"):
        convert(pair)


def palette_label(ids, order, rest=256):
    """A label of ids whose palette is a colour map: the classes' colours in the given order."""
    colors = [c.color for c in CLASSES]
    place = np.argsort(order).astype(np.uint8)
    label = Image.fromarray(place[ids])
    palette = [colors[i] for i in order] + [(1, 2, 3)] * rest
    label.putpalette([channel for color in palette[:256] for channel in color])
    buffer = io.BytesIO()
    label.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("rest", [0, 256])
@pytest.mark.parametrize(
    ("order", "note"),
    [
        ((0, 1, 2, 3), ""),
        (
            (1, 2, 3, 0),
            "4 of its 4 indices have the colour of another class: index 0 has that of mark",
        ),
        (
            (1, 0, 2, 3),
            "2 of its 4 indices have the colour of another class: index 0 has that of mark",
        ),
    ],
)
def test_a_palette_in_another_order_is_noted(pair, order, note, rest):
    pair.label_path.write_bytes(palette_label(IDS, order, rest))
    palette_note = convert(pair)[1].palette
    assert palette_note.startswith(note) and bool(palette_note) == bool(note)


def test_a_palette_in_another_order_is_in_the_audit(tmp_path, capsys):
    save_good_pairs(tmp_path)
    (tmp_path / "labels/1.png").write_bytes(palette_label(IDS, (3, 0, 2, 1)))
    assert build(tmp_path) == 0
    assert "suspicious samples: 1 palette of other classes" in capsys.readouterr().out
    audit = json.loads((tmp_path / "r/audit.json").read_text())
    (sample,) = (s for s in audit["samples"] if s["reason"] == "palette of other classes")
    assert sample["key"] == "1" and "3 of its 4 indices" in sample["detail"]


def test_colours_that_classes_share_and_greys_are_no_contradiction(pair):
    """As in Vistas, where index 1 may have the colour of class 0, which index 0 has too."""
    label = Image.fromarray(IDS)
    colors = [c.color for c in CLASSES]
    label.putpalette([channel for i in (0, 0, 2, 3) for channel in colors[i]])
    label.save(pair.label_path)
    assert convert(pair)[1].palette == ""
    label.putpalette([i for i in range(256) for _ in range(3)])
    label.save(pair.label_path)
    black = (LabelClass(0, "road", (1, 1, 1)), LabelClass(1, "void", (0, 0, 0)), *CLASSES[2:])
    assert convert(pair, classes=black)[1].palette == ""


@pytest.mark.skipif(not (SHARED / "data/mapillary_sample").is_dir(), reason="needs the real sample")
def test_no_palette_of_the_real_sample_is_suspicious():
    root = SHARED / "data/mapillary_sample"
    classes = read_class_table(root / "config_v1.2.json")
    for split in ("training", "validation"):
        for pair in find_pairs(root / split / "images", root / split / "labels")[0]:
            assert convert_pair(pair, Resize(max_side=64), classes)[1].palette == ""


def test_a_png_whose_last_checksum_differs_is_named(pair):
    data = encoded(picture(), "PNG")
    pair.image_path.write_bytes(data[:-1] + b"x")
    with pytest.raises(ValueError, match=r"a\.jpg: must be a valid .* checksum"):
        convert(pair)


def with_pixels(png, change):
    """A PNG whose compressed pixels are changed, in one chunk, with valid chunk checksums."""
    at = png.index(b"IDAT") - 4
    length = int.from_bytes(png[at : at + 4], "big")
    assert png[at + 12 + length :][4:8] == b"IEND"
    return png[:at] + chunk(b"IDAT", change(png[at + 8 : at + 8 + length])) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file", ["image_path", "label_path"])
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda data: data[:-4], "its compressed pixels are incomplete"),
        (lambda data: data[:-1], "its compressed pixels are incomplete"),
        (lambda data: data[:-4] + b"abcd", "incorrect data check"),
    ],
)
def test_a_png_whose_pixels_lack_their_checksum_is_named(pair, file, change, cause):
    """Pillow decodes some of these files; TensorFlow, which training uses, decodes none."""
    path = getattr(pair, file)
    png = encoded(IDS if file == "label_path" else picture(), "PNG")
    path.write_bytes(with_pixels(png, lambda data: data + b"and more"))
    convert(pair)
    path.write_bytes(with_pixels(png, change))
    with pytest.raises(ValueError, match=rf"{path.name}: must be a valid .*{cause}.*Remedy: fetch"):
        convert(pair)
    image, label = path.read_bytes(), None
    if file == "label_path":
        image, label = encoded(picture()), image
    with pytest.raises(ValueError, match="key: image and label must be decodable; got"):
        inspect_record(record_of(image, label), range(4))


def animated(*pictures):
    buffer = io.BytesIO()
    first, *rest = map(Image.fromarray, pictures)
    first.save(buffer, "PNG", save_all=True, append_images=rest)
    return buffer.getvalue()


def test_an_animated_png_is_refused(pair):
    image, label = animated(picture(), picture(1)), animated(IDS, IDS[::-1].copy())
    single = encoded(picture(), "PNG")
    for data, label_data, name in (
        (image, pair.label_path.read_bytes(), "jpg"),
        (single, label, "png"),
    ):
        pair.image_path.write_bytes(data)
        pair.label_path.write_bytes(label_data)
        with pytest.raises(
            ValueError, match=rf"a\.{name}: an image file must hold one picture; got 2"
        ):
            convert(pair)
        with pytest.raises(ValueError, match=r"key: .*must hold one picture; got 2 pages"):
            inspect_record(record_of(data, label_data), range(4))


def test_of_a_phones_jpeg_with_two_pictures_the_first_is_read(pair):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(
        buffer, "MPO", save_all=True, append_images=[Image.fromarray(picture(1))]
    )
    pair.image_path.write_bytes(buffer.getvalue())
    stored = np.asarray(Image.open(io.BytesIO(parse_sample(convert(pair)[0]).image)))
    assert np.abs(stored.astype(int) - picture()).mean() < 4


def test_cmyk_is_refused_by_conversion_and_verification(pair):
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert("CMYK").save(buffer, "JPEG")
    data = buffer.getvalue()
    pair.image_path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.jpg: an image must be grey or RGB.* mode CMYK"):
        convert(pair)
    with pytest.raises(ValueError, match="key: an image must be grey or RGB; got CMYK"):
        inspect_record(record_of(data), range(4))


def test_another_kind_of_file_is_named(pair):
    for data, kind in (
        (encoded(picture(), "WEBP"), "another kind of file"),
        (b"", "an empty file"),
    ):
        pair.image_path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"a\.jpg: .*got {kind}, .*Remedy: fetch it again or"):
            convert(pair)
