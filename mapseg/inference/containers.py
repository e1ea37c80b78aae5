"""Reads the packets of video files with PyAV, if it is installed, without decoding them."""

from fractions import Fraction
from pathlib import Path
from types import ModuleType

_DEFAULT_TICK = Fraction(1, 90_000)  # that of MPEG, which most frame rates divide


def load_pyav() -> ModuleType | None:
    """Returns PyAV, or None if it is not installed."""
    try:
        import av
    except ImportError:
        return None
    return av


def read_tick(path: Path) -> Fraction:
    """Returns the unit of a video's timestamps in seconds; PyAV must be installed."""
    import av

    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].time_base or _DEFAULT_TICK
    except (av.error.FFmpegError, IndexError):
        return _DEFAULT_TICK


def count_packets(path: Path) -> int | None:
    """Counts the frames of an MP4 or MOV file whose index leaves no doubt.

    Each packet of these formats is one frame. The index leaves no doubt if it announces exactly the
    packets that are there and complete, an edit list drops none of them, and the first can be
    decoded without an earlier one and is shown first.

    Returns:
      The number, or None: PyAV is not installed, or the frames must be decoded to be counted.
    """
    av = load_pyav()
    if av is None:
        return None
    times: list[int | None] = []
    try:
        with av.open(str(path)) as container:
            if "mov" not in container.format.name or len(container.streams.video) != 1:
                return None
            for packet in container.demux(video=0):
                if not packet.size:
                    continue  # ends the stream
                if packet.is_corrupt or packet.is_discard or not (times or packet.is_keyframe):
                    return None
                times.append(packet.pts)
            announced = container.streams.video[0].frames
    except (av.error.FFmpegError, UnicodeEncodeError):
        return None
    known = [time for time in times if time is not None]
    is_certain = len({*known}) == len(times) == announced and known and known[0] == min(known)
    return announced if is_certain else None
