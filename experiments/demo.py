"""Runs all commands from data to inference on synthetic scenes, and checks the scores.

`make demo` calls it. Run it again after an interruption: every step resumes.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST_MEAN_IOU, LEAST_OVER_MAJORITY, LEAST_LANE_IOU = 0.40, 3.0, 0.40


def main(out_dir: Path) -> int:
    """Makes and converts data, trains, evaluates, infers; returns the exit code."""
    sample_dir, records_dir = out_dir / "sample", out_dir / "records"
    run_dir, frames_dir = out_dir / "run", out_dir / "frames"
    records, run = f"--records_dir={records_dir}", f"--run_dir={run_dir}"
    make = ["data_prep.make_sample", f"--out_dir={sample_dir}"]
    convert = ["data_prep.build_records", f"--vistas_dir={sample_dir}", records, "--max_side=256"]
    train = ["train_main.py", "--flagfile=experiments/demo.flags", records, run]
    report = ["mapseg.evaluation.report", run, records, f"--frames_dir={frames_dir}"]
    infer = ["infer_main.py", run, f"--frames={sample_dir / 'frames'}", f"--out_dir={frames_dir}"]
    steps = [
        ("making a dataset of synthetic street scenes", ["-m", *make]),
        ("converting it to records", ["-m", *convert]),
        ("training, then evaluation on scenes with other settings", train),
        (
            "inference on the frames of a drive, twice as wide as the training images",
            [*infer, "--scale=0.8", "--outputs=ids,overlay,panel,video"],
        ),
        ("a report of all of this, on one page", ["-m", *report]),
    ]
    started = time.monotonic()
    for number, (title, arguments) in enumerate(steps, start=1):
        if "data_prep.make_sample" in arguments and sample_dir.exists():
            continue
        print(f"\n== {number}/{len(steps)} {title}\npython {' '.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode
        if code:
            print(f"demo: step {number} failed with exit code {code}", file=sys.stderr)
            return code
    print(f"\n== done in {time.monotonic() - started:.0f} s; results:")
    for content, path in (
        ("samples of the records", records_dir / "audit.png"),
        ("loss curve", run_dir / "loss.png"),
        ("image, prediction and ground truth", run_dir / "evaluation" / "panels"),
        ("overlays of the drive", frames_dir / "overlay"),
        ("the same with a legend", frames_dir / "panel"),
        ("video of the drive", frames_dir / "video"),
        ("report, a page to open in a browser", run_dir / "report" / "index.html"),
    ):
        print(f"  {content}: {path}")
    return judge(run_dir / "evaluation" / "validation.json")


def judge(scores_path: Path) -> int:
    """Checks the scores of an evaluation; returns 0 if they are good enough."""
    scores = json.loads(scores_path.read_text(encoding="utf-8"))
    mean_iou, majority = scores["mean_iou"], scores["majority_mean_iou"]
    lane = scores["iou"]["marking--general"] or 0.0
    print(
        f"mean IoU {mean_iou:.1%}, majority class {majority:.1%}, lane marking IoU {lane:.1%}",
        flush=True,
    )
    works = (
        mean_iou >= LEAST_MEAN_IOU
        and mean_iou >= LEAST_OVER_MAJORITY * majority
        and lane >= LEAST_LANE_IOU
    )
    if not works:
        print(
            f"demo: the model must reach a mean IoU of {LEAST_MEAN_IOU:.0%} and "
            f"{LEAST_OVER_MAJORITY:.0f} times the majority class, and a lane marking IoU of "
            f"{LEAST_LANE_IOU:.0%}",
            file=sys.stderr,
        )
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_out").resolve()))
