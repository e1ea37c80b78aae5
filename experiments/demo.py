"""Runs the whole way on scripted scenes with the real commands, and checks that it worked.

`make demo` calls it. Every step goes on where it was interrupted, so it can be run again.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST_MEAN_IOU, LEAST_OVER_MAJORITY, LEAST_LANE_IOU = 0.40, 3.0, 0.40


def main(out_dir: Path) -> int:
    """Makes, converts, trains, evaluates, infers; returns the exit code."""
    sample_dir, records_dir = out_dir / "sample", out_dir / "records"
    run_dir, frames_dir = out_dir / "run", out_dir / "frames"
    records, run = f"--records_dir={records_dir}", f"--run_dir={run_dir}"
    make = ["data_prep.make_sample", f"--out_dir={sample_dir}"]
    convert = ["data_prep.build_records", f"--vistas_dir={sample_dir}", records, "--max_side=256"]
    train = ["train_main.py", "--flagfile=experiments/demo.flags", records, run]
    infer = ["infer_main.py", run, f"--frames={sample_dir / 'frames'}", f"--out_dir={frames_dir}"]
    steps = [
        ("a scripted street-scene data set", ["-m", *make]),
        ("its conversion to records", ["-m", *convert]),
        ("training, then evaluation on scenes of other settings", train),
        (
            "inference over the frames of a drive, twice as wide as what it was trained on",
            [*infer, "--scale=0.8", "--outputs=ids,overlay,panel,video"],
        ),
    ]
    started = time.monotonic()
    for number, (what, arguments) in enumerate(steps, start=1):
        if "data_prep.make_sample" in arguments and sample_dir.exists():
            continue
        print(f"\n== {number}/{len(steps)} {what}\npython {' '.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode
        if code:
            print(f"demo: step {number} failed with exit code {code}", file=sys.stderr)
            return code
    print(f"\n== done in {time.monotonic() - started:.0f} s; open")
    for what, path in (
        ("what the records hold", records_dir / "audit.png"),
        ("the loss", run_dir / "loss.png"),
        ("image, prediction and ground truth", run_dir / "evaluation" / "panels"),
        ("the drive, segmented", frames_dir / "overlay"),
        ("the same with legend", frames_dir / "panel"),
        ("the drive as a film", frames_dir / "video"),
    ):
        print(f"  {what}: {path}")
    return judge(run_dir / "evaluation" / "validation.json")


def judge(scores_path: Path) -> int:
    """Prints the verdict on an evaluation; 0 where the model visibly works."""
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
