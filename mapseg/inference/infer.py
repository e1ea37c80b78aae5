"""Camera frames -> label maps, overlays, panels and videos, at the size of each frame."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mapseg import pictures
from mapseg.config import InferConfig, PredictConfig
from mapseg.files import check_writable, locked, naming, printable
from mapseg.inference.batching import default_batch_size
from mapseg.inference.films import MPEG_4_MESSAGE, load_encoder
from mapseg.inference.frame_table import FrameTable
from mapseg.inference.frames import FrameList, find_frames
from mapseg.inference.mark import read_mark
from mapseg.inference.output_classes import OutputClasses, output_classes
from mapseg.inference.plan import make_plan, video_row_name
from mapseg.inference.results import PAGE_NAME, Results, Row, Source
from mapseg.inference.stages import Segment, do_tasks
from mapseg.inference.videos import Videos
from mapseg.mapping import Mapping, read_mapping
from mapseg.model.pretrained import find_deeplab
from mapseg.progress import duration, make_reporter
from mapseg.runs.checkpoints import find_checkpoint, weights_sha256
from mapseg.runs.folder import open_run

if TYPE_CHECKING:  # importing TensorFlow takes seconds; missing files are reported before
    from mapseg.inference.predictor import Predictor


class Counts(NamedTuple):
    """Numbers of frames that were segmented, that failed, and that earlier calls did.

    Videos that could not be written also count as failed.
    """

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
      config: which frames to segment, and which outputs to write where.
      predicting: scales, flip and tile size.
      checkpoint: `best`, `latest` or a step.
      progress: called with progress messages.

    Raises:
      FileNotFoundError: no such run or checkpoint, or no frames.
      ValueError: see `infer_frames`.
    """
    run = open_run(run_dir)
    path = find_checkpoint(run_dir, checkpoint)
    # Bad options, missing inputs and unwritable outputs are reported before TensorFlow is imported.
    classes = output_classes(run.label_set, _mapping(config), config.ids)
    check_writable(Path(config.out_dir))
    frame_list = find_frames(config)
    by = f"{path.name} ({weights_sha256(path)[:16]})"

    from mapseg.inference.predictor import load_predictor

    predictor = load_predictor(run, predicting, path)
    progress(f"{run.model.encoder}, {path.name} of {run_dir}, {len(run.label_set.classes)} classes")
    return _infer(predictor, classes, frame_list, config, progress, by)


def infer_deeplab(
    prefix: str, config: InferConfig, predicting: PredictConfig, progress: Callable[[str], None]
) -> Counts:
    """Segments frames with a published TF DeepLab network, trained on Cityscapes.

    Args:
      prefix: the prefix of its checkpoint; see `load_deeplab`.
      config: which frames to segment, and which outputs to write where.
      predicting: as for `infer_run`; `scale=auto` is a long side of 2048 px, as in Cityscapes.
      progress: called with progress messages.

    Raises:
      FileNotFoundError: no such checkpoint, or no frames.
      ValueError: see `load_deeplab` and `infer_frames`.
    """
    mapping = _mapping(config)
    check_writable(Path(config.out_dir))
    frame_list, index_path = find_frames(config), find_deeplab(prefix)

    from mapseg.inference.predictor import Predictor
    from mapseg.model.network import frozen_network
    from mapseg.model.published import CITYSCAPES_LONG_SIDE_PX, load_deeplab

    model, label_set = load_deeplab(prefix)
    classes = output_classes(label_set, mapping, config.ids)
    # The index holds a checksum of every weight.
    digest = hashlib.sha256(index_path.read_bytes()).hexdigest()[:16]
    by = f"{Path(prefix).name} ({digest})"
    predictor = Predictor(frozen_network(model), predicting, CITYSCAPES_LONG_SIDE_PX)
    progress(f"xception65, {prefix}, {len(label_set.classes)} classes of Cityscapes")
    return _infer(predictor, classes, frame_list, config, progress, by)


def _mapping(config: InferConfig) -> Mapping | None:
    return read_mapping(config.mapping) if config.mapping else None


def _infer(
    predictor: "Predictor",
    classes: OutputClasses,
    frame_list: FrameList,
    config: InferConfig,
    progress: Callable[[str], None],
    by: str,
) -> Counts:
    label_set = classes.predicted
    digest = hashlib.sha256(json.dumps(label_set.to_json()).encode()).hexdigest()[:16]
    fingerprint = (
        f"{by}, label set {label_set.name} ({digest}), {predictor.config}, "
        f"long_side_px={predictor.long_side_px}, classes={config.classes or 'all'}"
        f"{classes.identity}"
    )
    ids_line = classes.file_ids_line()
    if ids_line and "ids" in config.outputs.split(","):
        progress(ids_line)
    if not config.batch_size:
        config = replace(config, batch_size=default_batch_size())
    segment = predictor.segment_batch
    return infer_frames(segment, classes, frame_list, config, progress, fingerprint)


def infer_frames(
    segment: Segment,
    classes: OutputClasses,
    frame_list: FrameList,
    config: InferConfig,
    progress: Callable[[str], None],
    fingerprint: str,
) -> Counts:
    """Segments frames and writes the outputs listed in `config.outputs`.

    `ids/<frame>.png` is a palette image of class ids, `overlay/<frame>.jpg` the tinted frame,
    `panel/<frame>.jpg` the frame and prediction with a legend, and `video/<folder>.mp4` the
    overlays of a folder or video, fitted to the size of the first. `page` writes `index.html`, a
    page about all frames of the folder, from `page/<frame>.json`. `legend.png` and `frames.csv`
    (one row per frame) are always written.

    The folder is bound to the fingerprint, and each result to the content of its source. Repeating
    a call resumes it: frames with a row and all files are skipped; failed frames, and frames whose
    source was replaced, are processed again. Calls for other frames or outputs add to the folder
    and keep its rows. A frame that cannot be read, segmented, drawn or written, or a video that
    cannot be written, does not stop the call; its row states the cause.

    Args:
      segment: [B, H, W, 3] uint8 RGB -> B of Segmentation. Called from this thread, in order.
      classes: those that `segment` predicts, those of the outputs, and their ids in files.
      frame_list: the frames.
      config: which outputs to write where.
      progress: called with a message every few seconds, for each failure, and at the end.
      fingerprint: identifies the checkpoint, the classes and the options.

    Returns:
      The numbers of frames that were done, failed and skipped.

    Raises:
      ValueError: an option is invalid; `out_dir` holds results of another fingerprint or version,
        or of other sources with the same names; or another call is writing to it.
      OSError: the disk is full, or `out_dir` is not writable.
    """
    names = config.classes.split(",")
    drawn = classes.label_set.select(names) if config.classes else None
    results = Results(Path(config.out_dir), tuple(config.outputs.split(",")), classes, drawn)
    read_mark(results.out_dir, fingerprint)  # a rejected folder gets no lock file
    lock_path = results.out_dir / ".lock"
    refusal = (
        f"{results.out_dir}: must be written by one call at a time; another call is running. "
        "Remedy: wait for it, or use another --out_dir"
    )
    with naming(lock_path):
        results.out_dir.mkdir(parents=True, exist_ok=True)
    with locked(lock_path, refusal):
        return _fill(
            segment, results, frame_list, config, lambda m: progress(printable(m)), fingerprint
        )


def _fill(
    segment: Segment,
    results: Results,
    frame_list: FrameList,
    config: InferConfig,
    progress: Callable[[str], None],
    fingerprint: str,
) -> Counts:
    """Processes the frames of an output folder that are not done; see `infer_frames`."""
    for message in frame_list.skipped:
        progress(message)
    mark = read_mark(results.out_dir, fingerprint)
    mark.write()
    table = FrameTable(results.out_dir / "frames.csv", results.columns)
    tasks, shown = make_plan(frame_list.frames, config.every, results, table, mark, progress)
    pictures.write_png(results.out_dir / "legend.png", pictures.legend(results.classes.label_set))
    failed_videos: list[Row] = []
    if shown and load_encoder() is None:
        progress(MPEG_4_MESSAGE)

    def close_video(name: str, error: BaseException | None) -> None:
        if error is None:
            mark.note_video(name, shown[name])
        else:
            source = Source(shown[name].source, "")
            row = results.failed_row(video_row_name(name), source, name, error)
            table.append(row)
            failed_videos.append(row)

    report = make_reporter(0, len(tasks), "frames", progress)
    started, done, failed, lost = time.monotonic(), 0, 0, len(tasks)
    with (
        table,
        Videos(
            lambda name: results.path("video", name), config.every, close_video, progress
        ) as videos,
        contextlib.closing(
            do_tasks(segment, tasks, results, table, videos, config.batch_size or 1)
        ) as finished,
    ):
        for count, outcome in enumerate(finished, start=1):
            lost = len(tasks) - count
            if outcome.row["status"] != "ok":
                failed += 1
                progress(_failure(outcome.row))
            elif not outcome.stored:
                done += 1
            report(count)
    table.finish()
    for row in failed_videos:
        progress(_failure(row))
    total = len(frame_list.frames) - lost  # without frames after the damage in a video
    skipped = total - done - failed
    films = f", videos failed: {len(failed_videos)}" if failed_videos else ""
    progress(
        f"{total} frames: {done} done, {failed} failed, {skipped} done before"
        f"{films}, in {duration(time.monotonic() - started)}; see {results.out_dir}"
    )
    _update_page(results, [*table.rows.values()], fingerprint, progress)
    return Counts(done, failed + len(failed_videos), skipped)


def _update_page(
    results: Results, rows: Sequence[Row], fingerprint: str, progress: Callable[[str], None]
) -> None:
    """Writes the page of an output folder if this call or an earlier one asked for it.

    Called last: if the page fails, the frames are done and their numbers reported.
    """
    if "page" not in results.outputs and not (results.out_dir / PAGE_NAME).is_file():
        return

    from mapseg.inference.page.write import write_page  # imports Matplotlib and Jinja2

    progress(f"wrote {write_page(results, rows, fingerprint)}")


def _failure(row: Row) -> str:
    return f"{row['frame']}: {row['status']}"
