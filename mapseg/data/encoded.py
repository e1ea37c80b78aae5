"""Checks encoded images: their format, and every byte.

Pillow and OpenCV silently decode damaged JPEG data to grey. Here every decoder warning is an error.
"""

import io
import zlib

import simplejpeg
from PIL import Image

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_DEPTH = 24  # offset in a PNG of the byte with the bits per channel
_TIFF_KIND, _TIFF_REDUCED_OR_MASK = 254, 0b101  # tag NewSubfileType
_INFLATED_BYTES = 2**20


def open_image(data: bytes) -> Image.Image:
    """Opens a JPEG or PNG without decoding it, and checks the checksums of a PNG.

    Raises:
      ValueError: another format, or so many pixels that they would exhaust memory.
      OSError, SyntaxError, ValueError, zlib.error: it is damaged.
    """
    if not data.startswith((JPEG, PNG)):
        raise ValueError("neither a JPEG nor a PNG, by its first bytes")
    try:
        image = Image.open(io.BytesIO(data))
        if data.startswith(PNG):
            image.verify()  # load() ignores checksums; verify() ignores the last chunk's
            if _PNG_END not in data:
                raise ValueError("the last chunk has a wrong checksum")
            _check_zlib(data)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(f"too many pixels: {error}") from error
    return image


def _check_zlib(png: bytes) -> None:
    """Checks that the compressed pixels of a PNG end with their checksum.

    Pillow decodes a PNG that lacks it; libpng, which TensorFlow and OpenCV use, rejects it.
    """
    inflater, start = zlib.decompressobj(), len(PNG)
    while start < len(png) and not inflater.eof:
        length, kind = int.from_bytes(png[start : start + 4], "big"), png[start + 4 : start + 8]
        compressed = png[start + 8 : start + 8 + length] if kind == b"IDAT" else b""
        while compressed and not inflater.eof:
            inflater.decompress(compressed, _INFLATED_BYTES)
            compressed = inflater.unconsumed_tail
        start += 12 + length
    if not inflater.eof:
        raise ValueError("its compressed pixels are incomplete")


def check_single(image: Image.Image) -> None:
    """Rejects a file with several pictures, of which decoders silently read the first.

    Accepts a JPEG with further pictures, such as previews or a second lens's view, and a TIFF with
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
    """Returns the error message for a file with several pictures."""
    return (
        f"an image file must hold one picture; got {count} pages or frames. Remedy: save each as a "
        "separate file, or an animation as a video"
    )


def _is_copy(tiff: Image.Image, page: int) -> bool:
    tiff.seek(page)
    return bool(int(tiff.tag_v2.get(_TIFF_KIND, 0)) & _TIFF_REDUCED_OR_MASK)


def channel_bits(data: bytes) -> int:
    """Returns the bits per channel of a JPEG or PNG."""
    return data[_PNG_DEPTH] if data.startswith(PNG) else 8


def check_jpeg(data: bytes) -> None:
    """Decodes a JPEG at 1/8 of its size, which is faster and still reads every byte.

    Raises:
      ValueError: it is damaged, even if the decoder would only warn.
    """
    simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
