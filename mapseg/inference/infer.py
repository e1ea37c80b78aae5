"""Camera frames -> label maps, overlays, panels and videos, each at the frame's own size."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mapseg import pictures
from mapseg.config import InferConfig, PredictConfig
from mapseg.inference.frames import FrameList, find_frames
from mapseg.inference.results import Journal, Results, claim
from mapseg.inference.stages import Segment, do_tasks, plan_tasks
from mapseg.inference.videos import Videos
from mapseg.labels import LabelSet
from mapseg.model.pretrained import find_deeplab
from mapseg.progress import duration, make_reporter
from mapseg.runs.checkpoints import find_checkpoint
from mapseg.runs.folder import open_run

if TYPE_CHECKING:  # TensorFlow takes seconds to import; what is missing is reported before
    from mapseg.inference.predictor import Predictor


class Counts(NamedTuple):
    """How many frames were segmented now, could not be, and were there from a call before."""

    done: int
    failed: int
    skipped: int


def infer_run(
    run_dir: Path,
    config: InferConfig,
    predicting: PredictConfig,
    checkpoint: str,
    progress: Callable[[str], None],
) -> Counts:
    """Segments frames with a trained run; see `infer_frames`.

    Args:
      run_dir: a run folder.
      config: which frames, and what to write where.
      predicting: scales, flip and tile size.
      checkpoint: `best`, `latest` or a step.
      progress: takes lines for people.

    Raises:
      FileNotFoundError: no such run or checkpoint, or no frames.
      ValueError: see `infer_frames`.
    """
    run = open_run(run_dir)
    path = find_checkpoint(run_dir, checkpoint)
    found = find_frames(config)  # what is missing is reported before TensorFlow is imported
    by = f"{run_dir.resolve()}, {path.name} ({_digest(path / 'weights.npz')})"

    from mapseg.inference.predictor import load_predictor

    predictor = load_predictor(run, predicting, path)
    progress(f"{run.model.encoder}, {path.name} of {run_dir}, {len(run.label_set.classes)} classes")
    return _infer(predictor, run.label_set, found, config, progress, by)


def infer_deeplab(
    prefix: str, config: InferConfig, predicting: PredictConfig, progress: Callable[[str], None]
) -> Counts:
    """Segments frames with a network of TF DeepLab, trained on Cityscapes, as it is.

    Args:
      prefix: of its checkpoint; see `load_deeplab`.
      config: which frames, and what to write where.
      predicting: as of `infer_run`; `scale=auto` is a long side of 2048, as in Cityscapes.
      progress: takes lines for people.

    Raises:
      FileNotFoundError: no such checkpoint, or no frames.
      ValueError: see `load_deeplab` and `infer_frames`.
    """
    found, index_path = find_frames(config), find_deeplab(prefix)

    from mapseg.inference.predictor import Predictor
    from mapseg.model.published import CITYSCAPES_LONG_SIDE_PX, load_deeplab

    model, label_set = load_deeplab(prefix)
    # The index holds a checksum of every weight.
    by = f"{Path(prefix).resolve()} ({_digest(index_path)})"
    predictor = Predictor(model, predicting, CITYSCAPES_LONG_SIDE_PX)
    progress(f"xception65, {prefix}, {len(label_set.classes)} classes of Cityscapes")
    return _infer(predictor, label_set, found, config, progress, by)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _infer(
    predictor: "Predictor",
    label_set: LabelSet,
    found: FrameList,
    config: InferConfig,
    progress: Callable[[str], None],
    by: str,
) -> Counts:
    fingerprint = (
        f"frames {Path(config.frames).resolve()} by {by}, {predictor.config}, "
        f"classes={config.classes or 'all'}"
    )
    return infer_frames(predictor.segment, label_set, found, config, progress, fingerprint)


def infer_frames(
    segment: Segment,
    label_set: LabelSet,
    found: FrameList,
    config: InferConfig,
    progress: Callable[[str], None],
    fingerprint: str,
) -> Counts:
    """Segments frames and writes what `config.outputs` asks for.

    `ids/<frame>.png` has the train id as the index of each pixel, `overlay/<frame>.jpg` the tinted
    frame, `panel/<frame>.jpg` frame and prediction with a legend, `video/<folder>.mp4` the
    overlays of a folder or video, fitted into the size of its first. `legend.png` and `frames.csv`
    (a row for each frame) are always written.

    The same call again goes on where the last one stopped: frames whose row and files are there
    are not done again, failed ones are. A frame that cannot be read, or that `segment` refuses with
    a ValueError, fails alone.

    Args:
      segment: [H, W, 3] uint8 RGB -> Segmentation. Called from this thread, in order.
      label_set: the classes that `segment` tells apart.
      found: the frames.
      config: what to write where.
      progress: takes a line every few seconds, one for each failure, and one at the end.
      fingerprint: tells the run folder, checkpoint and options apart from others.

    Returns:
      How many frames were done, failed and skipped.

    Raises:
      ValueError: an option that does not fit, or an `out_dir` with results of another fingerprint.
      OSError: the results cannot be written.
    """
    for line in found.skipped:
        progress(line)
    results = _open_results(label_set, config, fingerprint)
    journal = Journal(results.out_dir / "frames.csv", results.columns)
    tasks = plan_tasks(found.frames, results, journal.rows)
    report = make_reporter(0, len(tasks), "frames", progress)
    started, done, failed = time.monotonic(), 0, 0
    with (
        journal,
        Videos(lambda name: results.path("video", name), config.every) as videos,
        contextlib.closing(do_tasks(segment, tasks, results, journal, videos)) as finished,
    ):
        for count, (task, status) in enumerate(finished, start=1):
            if status != "ok":
                failed += 1
                progress(f"{task.frame.name}: {status}")
            elif not task.stored:
                done += 1
            report(count)
    journal.finish([frame.name for frame in found.frames])
    counts = Counts(done, failed, len(found.frames) - done - failed)
    progress(
        f"{len(found.frames)} frames: {done} done, {failed} failed, {counts.skipped} done before, "
        f"in {duration(time.monotonic() - started)}; see {results.out_dir}"
    )
    return counts


def _open_results(label_set: LabelSet, config: InferConfig, fingerprint: str) -> Results:
    """Makes the output folder, or takes one of the same fingerprint; draws the legend."""
    drawn = label_set.select(config.classes.split(",")) if config.classes else None
    results = Results(Path(config.out_dir), tuple(config.outputs.split(",")), label_set, drawn)
    claim(results.out_dir, fingerprint)
    pictures.write_png(results.out_dir / "legend.png", pictures.legend(label_set))
    return results
