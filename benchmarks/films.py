"""Times the writing of films of overlays and the counting of a video's frames.

    python benchmarks/films.py [--secs=60] [--rounds=5] [--video=FILE]

Counts the frames of an MP4 by decoding all of it and by its index, and writes its first 300 frames
as an MPEG-4 and as an H.264 film. The ways take turns in one process. Without --video the source is
a scripted drive of 1280x720 at 30 frames/s.
"""

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import flags
from programs import describe_machine, take_turns

from mapseg import cli
from mapseg.inference.films import AddPicture, h264_film, load_encoder, mpeg4_film
from mapseg.inference.measuring import measure_video, video_length
from mapseg.inference.reading import FrameReader

FPS, SIZE = 30, (720, 1280)
FILM_FRAMES = 300  # their pictures fit in memory


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_integer("secs", 60, "length of the scripted video", 10, flag_values=values)
    flags.DEFINE_integer("rounds", 5, "times that each way is measured", 1, flag_values=values)
    flags.DEFINE_string("video", "", "an MP4 instead of the scripted one", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a row for every way of counting and of writing.

    Raises:
      ValueError: PyAV is not installed, or the two ways of counting disagree.
    """
    av = load_encoder()
    if av is None:
        raise ValueError("PyAV must be installed; got none. Remedy: pip install 'mapseg[video]'")
    with tempfile.TemporaryDirectory() as folder:
        video, film = Path(values.video or f"{folder}/drive.mp4"), Path(folder, "film.mp4")
        if not values.video:
            with h264_film(av, video, SIZE, FPS, Fraction(1, FPS)) as add:
                for number in range(FPS * values.secs):
                    add(scripted_picture(number), number / FPS)
        lengths = measure_video(video), video_length(video)
        if lengths[0] != lengths[1]:
            raise ValueError(f"{video}: both ways must count the same; got {lengths}")
        size = f"{video.stat().st_size / 1e6:.1f} MB"
        print(f"{describe_machine()}; {lengths[0].frames} frames, {size}\n")
        print("| part | way | median s | relative to the first | film |\n" + "| --- " * 5 + "|")
        counting = {"decoded": lambda: measure_video(video), "index": lambda: video_length(video)}
        compare("counting", counting, values.rounds, None)
        reader = FrameReader()
        count = min(FILM_FRAMES, lengths[0].frames)
        pictures = [reader.read(video, number).image for number in range(count)]
        height, width = pictures[0].shape[:2]

        def write(opened: AbstractContextManager[AddPicture]) -> None:
            with opened as add:
                for number, picture in enumerate(pictures):
                    add(picture, number / FPS)

        writing = {
            "MPEG-4": lambda: write(mpeg4_film(film, (height, width), FPS)),
            "H.264": lambda: write(h264_film(av, film, (height, width), FPS, Fraction(1, FPS))),
        }
        compare(f"writing {count} frames", writing, values.rounds, film)
    return 0


def compare(
    part: str, ways: Mapping[str, Callable[[], Any]], rounds: int, film: Path | None
) -> None:
    """Prints the median time of each way, and the size of the film that it wrote."""

    def timed(way: Callable[[], Any]) -> tuple[float, int]:
        started = time.perf_counter()
        way()
        return time.perf_counter() - started, film.stat().st_size if film else 0

    timings = {name: functools.partial(timed, way) for name, way in ways.items()}
    turns = take_turns(timings, rounds)
    medians = {name: statistics.median(secs for secs, _ in turn) for name, turn in turns.items()}
    first = next(iter(medians.values()))
    for name, secs in medians.items():
        size = f"{turns[name][0][1] / 1e6:.1f} MB" if film else ""
        print(f"| {part} | {name} | {secs:.2f} | {secs / first:.2f} | {size} |", flush=True)


def scripted_picture(number: int) -> np.ndarray:
    """Returns a street that moves to the left, with the tint of an overlay and a camera's noise."""
    height, width = SIZE
    texture = np.random.default_rng(0).integers(60, 200, (height // 8, width // 4, 3), np.uint8)
    street = cv2.resize(texture, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    picture = street[:, 4 * number % width :][:, :width].astype(np.int16)
    picture[height // 2 :] = picture[height // 2 :] // 2 + np.array([64, 32, 64], np.int16)
    picture += np.random.default_rng(number).integers(-6, 7, picture.shape, np.int16)
    return np.clip(picture, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(cli.run(work, define_flags(), sys.argv, __doc__))
