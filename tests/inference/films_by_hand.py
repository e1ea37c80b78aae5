"""Source videos as cameras write them, and what a film holds."""

from fractions import Fraction

import av
import cv2
import numpy as np

PHONE_MS = [0, 33, 67, 133, 141, 200, 267, 300, 433, 450]  # frame times of a phone in poor light


def pictures(count, size=(48, 80)):
    """Pictures with a white corner at the top left, in front of a moving edge."""
    made = []
    for i in range(count):
        picture = np.full((*size, 3), 40 + 10 * i % 150, np.uint8)
        picture[:, : size[1] * (i + 1) // (count + 1)] //= 2
        picture[: size[0] // 3, : size[1] // 3] = 250
        made.append(picture)
    return made


def write_source(path, times, tick=Fraction(1, 1000), codec="libx264", size=(48, 80), **options):
    """Writes a video whose frames have these times, in ticks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        stream.options = {key: str(value) for key, value in options.items()}
        for picture, time in zip(pictures(len(times), size), times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def turn(path, degrees):
    """Stores a rotation in an MP4, as a phone that is held upright does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix follows version, times, ids and reserved fields
    one, matrix = 1 << 16, {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1)}[degrees]
    a, b, c, d = (value * one for value in matrix)
    values = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(data)


class Film:
    """What PyAV reads from a film, and its pictures."""

    def __init__(self, path):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            self.codec, self.pix_fmt = stream.codec_context.name, stream.pix_fmt
            self.size = stream.height, stream.width
            self.fps = float(stream.average_rate)
            self.ms = [float(frame.pts * stream.time_base * 1000) for frame in frames]
            self.length_ms = float(stream.duration * stream.time_base * 1000)
        # OpenCV's decoder is another one than the encoder's, and applies the film's colour space.
        decoded = cv2.VideoCapture(str(path))
        bgr = [picture for _, picture in iter(decoded.read, (False, None))]
        self.pictures = [cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture in bgr]
        data = path.read_bytes()
        self.index_is_first = data.index(b"moov") < data.index(b"mdat")
