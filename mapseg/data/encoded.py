"""Encoded images: which kind they are, and whether each byte of them is sound.

Pillow and OpenCV show damaged JPEG code as grey, without a word. Here every warning of the decoder
is an error.
"""

import io
import zlib

import simplejpeg
from PIL import Image

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_DEPTH = 24  # byte of a PNG that says how many bits a channel has
_TIFF_KIND, _TIFF_REDUCED_OR_MASK = 254, 0b101  # tag NewSubfileType
_INFLATED_BYTES = 2**20


def open_image(data: bytes) -> Image.Image:
    """Opens a JPEG or PNG without decoding it; the checksums of a PNG are checked.

    Raises:
      ValueError: another kind, or one of so many pixels that it would fill the memory.
      OSError, SyntaxError, ValueError, zlib.error: it is damaged.
    """
    if not data.startswith((JPEG, PNG)):
        raise ValueError("neither, by its first bytes")
    try:
        image = Image.open(io.BytesIO(data))
        if data.startswith(PNG):
            image.verify()  # load() ignores checksums, and this that of the last chunk
            if _PNG_END not in data:
                raise ValueError("the checksum of the last chunk differs")
            _check_zlib(data)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(f"too many pixels: {error}") from error
    return image


def _check_zlib(png: bytes) -> None:
    """Checks that the compressed pixels of a PNG end with their checksum.

    Pillow decodes a PNG that lacks it; libpng, in TensorFlow and OpenCV, refuses it.
    """
    inflater, at = zlib.decompressobj(), len(PNG)
    while at < len(png) and not inflater.eof:
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        left = png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while left and not inflater.eof:
            inflater.decompress(left, _INFLATED_BYTES)
            left = inflater.unconsumed_tail
        at += 12 + length
    if not inflater.eof:
        raise ValueError("its compressed pixels lack their end")


def check_single(image: Image.Image) -> None:
    """Refuses a file of several pictures, of which decoders take the first without a word.

    A JPEG may have others after its own: previews, or what a second lens saw. So may a TIFF have
    smaller copies and masks of its picture.

    Raises:
      ValueError: it has several pages, or is animated.
    """
    count = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if count > 1 and image.format == "TIFF":
        copies = [_is_copy(image, page) for page in range(count)]
        image.seek(0)
        if not copies[0] and all(copies[1:]):
            return
    if count > 1:
        raise ValueError(several_message(str(count)))


def several_message(count: str) -> str:
    """Says what is wrong with a file of several pictures."""
    return (
        f"an image file must hold one picture; got {count} pages or frames. Remedy: save each as a "
        "file of its own, or an animation as a video"
    )


def _is_copy(tiff: Image.Image, page: int) -> bool:
    tiff.seek(page)
    return bool(int(tiff.tag_v2.get(_TIFF_KIND, 0)) & _TIFF_REDUCED_OR_MASK)


def channel_bits(data: bytes) -> int:
    """Returns how many bits a channel of a JPEG or PNG has."""
    return data[_PNG_DEPTH] if data.startswith(PNG) else 8


def check_jpeg(data: bytes) -> None:
    """Decodes a JPEG, at an eighth of its size: that reads all its bytes, and is faster.

    Raises:
      ValueError: it is damaged, if only so that the decoder would warn.
    """
    simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
