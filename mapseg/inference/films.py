"""Encodes one film: H.264 with PyAV, which browsers play, or MPEG-4 with OpenCV."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from mapseg.files import whole_file
from mapseg.inference.containers import load_pyav
from mapseg.inference.reading import check_utf8

# Adds a picture [H, W, 3] uint8 RGB of the film's size that is shown from this time, in seconds.
AddPicture = Callable[[np.ndarray, float], None]

# H.264 level 5.2 has frames of up to 36,864 blocks of 16 x 16 px. It allows longer sides, but the
# decoders in graphics processors, which some browsers depend on, end at 4,096 px.
_MAX_SIDE_PX, _BLOCK_PX, _MAX_BLOCKS = 4096, 16, 36_864
_X264 = {"preset": "veryfast", "crf": "20"}  # visually close to the overlays' JPEGs
_BT_709 = 1  # FFmpeg's code for the colours of HD video
_LIMITED_RANGE = 1
_PLAUSIBLE_FPS, _USUAL_FPS = (0.01, 1000.0), 30.0
_MAX_PX, _MAX_RATE = 8191, 65535  # of MPEG-4: frame rates are fractions of 16-bit integers
_DISK_IS_FULL_BYTES = 2**20

MPEG_4_MESSAGE = (
    "videos are written in MPEG-4, which browsers do not play, and at a constant frame rate, "
    "because PyAV with its H.264 encoder is not installed. Remedy: pip install 'mapseg[video]'"
)


def load_encoder() -> ModuleType | None:
    """Returns PyAV if it is installed with an H.264 encoder, which not every build has."""
    av = load_pyav()
    if av is None or "libx264" not in av.codecs_available:
        return None
    return av


def h264_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) itself, or shrunk to the largest frame that browsers play."""
    scale = min(1.0, _MAX_SIDE_PX / max(size))
    while True:
        height, width = (max(1, round(side * scale)) for side in size)
        if math.ceil(height / _BLOCK_PX) * math.ceil(width / _BLOCK_PX) <= _MAX_BLOCKS:
            return height, width
        scale *= 0.999


@contextmanager
def h264_film(
    av: Any, path: Path, size: tuple[int, int], fps: float, tick: Fraction
) -> Iterator[AddPicture]:
    """Writes H.264 in MP4, with its index first, and each picture shown from its own time.

    H.264 in YUV 4:2:0 has even sides: the last row and column of an odd size are repeated. The last
    picture is shown as long as the one before, or as one frame if it is the only one.

    Args:
      av: PyAV; see `load_encoder`.
      path: the file, which appears when the block succeeds.
      size: (height, width) of the pictures; see `h264_size`.
      fps: frame rate of the source; approximate if it varies.
      tick: unit of the times in the file, in seconds.

    Raises:
      OSError: the file cannot be written.
      ValueError: it cannot be encoded, or not all of its pictures can be read back.
    """
    if not _PLAUSIBLE_FPS[0] <= fps <= _PLAUSIBLE_FPS[1]:
        fps = _USUAL_FPS  # some headers of varying rates have the rate of a clock
    check_utf8(path)
    times: list[int] = []
    with whole_file(path) as partial, _naming_ffmpeg(av, path, partial):
        partial.touch()  # raises the cause, which FFmpeg may not report
        with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
            stream = _open_stream(container, size, fps, tick)

            def add(picture: np.ndarray, secs: float) -> None:
                times.append(max(round(secs / tick), times[-1] + 1 if times else 0))
                with _naming_ffmpeg(av, path, partial):
                    container.mux(stream.encode(_yuv_frame(av, picture, times[-1], tick)))

            yield add
            last = times[-1] - times[-2] if times[1:] else max(1, round(1 / fps / tick))
            for packet in stream.encode():
                packet.duration = last  # MP4 stores that of the last; others are differences
                container.mux(packet)
        with av.open(str(partial)) as container:
            written = sum(1 for packet in container.demux(video=0) if packet.size)
        if written != len(times):
            raise _incomplete(path, len(times))


@contextmanager
def _naming_ffmpeg(av: Any, path: Path, partial: Path) -> Iterator[None]:
    """Turns an error of FFmpeg, of which some are neither OSError nor ValueError, into one."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), str(partial)) from error
        raise ValueError(
            f"{path}: its frames must be ones that x264 can encode; got its error: {error}. "
            "Remedy: leave video out of --outputs"
        ) from error


def _open_stream(container: Any, size: tuple[int, int], fps: float, tick: Fraction) -> Any:
    # The rate only guides the encoder: it may be that of a source whose rate varies.
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    stream.height, stream.width = (side + side % 2 for side in size)
    stream.pix_fmt, stream.options, stream.time_base = "yuv420p", _X264, tick
    encoder = stream.codec_context
    encoder.time_base = tick
    encoder.max_b_frames = 0  # else the file needs an edit list, which not every player applies
    encoder.colorspace = encoder.color_primaries = encoder.color_trc = _BT_709
    encoder.color_range = _LIMITED_RANGE
    return stream


def _yuv_frame(av: Any, picture: np.ndarray, time: int, tick: Fraction) -> Any:
    height, width = picture.shape[:2]
    even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    frame = av.VideoFrame.from_ndarray(even, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    frame.pts, frame.time_base = time, tick
    return frame


@contextmanager
def mpeg4_film(path: Path, size: tuple[int, int], fps: float) -> Iterator[AddPicture]:
    """Writes MPEG-4 of a constant frame rate in MP4; the times of pictures are ignored.

    Raises:
      OSError: the file cannot be written.
      ValueError: MPEG-4 has no such size or frame rate, or not all pictures can be read back.
    """
    fps = _rate(fps)
    check_utf8(path)
    with whole_file(path) as partial:
        partial.touch()  # raises the cause, which OpenCV would not report
        code = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(partial), code, fps, size[::-1])
        if not writer.isOpened():
            raise ValueError(
                f"{path}: an MPEG-4 video must have sides of 2 to {_MAX_PX:,} px and 0.001 to "
                f"{_MAX_RATE:,} frames/s; got {size[0]} x {size[1]} px and {fps:g} frames/s. "
                "Remedy: pip install 'mapseg[video]', which writes H.264, leave video out of "
                "--outputs, or use smaller frames"
            )
        count = 0

        def add(picture: np.ndarray, _: float) -> None:
            nonlocal count
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            count += 1

        try:
            yield add
        finally:
            writer.release()
        # The writer reports no errors: a full disk shows only when reading the file back.
        written = cv2.VideoCapture(str(partial)).get(cv2.CAP_PROP_FRAME_COUNT)
        if written != count:
            raise _incomplete(path, count)


def _rate(fps: float) -> float:
    """Returns the rate nearest to `fps` that OpenCV and MPEG-4 can store: 90.12 for 90.123."""
    for digits in (3, 2, 1, 0):
        if fps * 10**digits <= _MAX_RATE:
            return fps if digits == 3 else round(fps, digits)
    return fps


def _incomplete(path: Path, count: int) -> Exception:
    if shutil.disk_usage(path.parent).free < _DISK_IS_FULL_BYTES:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return ValueError(
        f"{path}: not all of {count} frames can be read back. Remedy: run the same command again, "
        "or leave video out of --outputs"
    )
