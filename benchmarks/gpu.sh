#!/usr/bin/env bash
# Runs the GPU measurements, most important first, each with a time limit; ten minutes in all.
#
#   OUT=FOLDER [TWIN="python torch_twin.py"] [FORMER=CHECKOUT] [RECORDS=FOLDER] \
#       [RUN=FOLDER FRAMES=FOLDER] benchmarks/gpu.sh
#
# TWIN accepts ENCODER HxW BATCH 0|1 train|infer and prints JSON with images_per_s; it runs in a
# separate environment. FORMER is a checkout of an earlier version, whose step is timed by its own
# benchmark. Results and errors are written to OUT, one file per measurement; the last ones may be
# incomplete.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?must be a folder for the results}
TWIN=${TWIN:-}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

measure() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  echo "== $name: $*"
  timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.err"
  echo "exit $? after $((SECONDS - started)) s"
  tail -n 12 "$OUT/$name.txt"
}

twin_train=() twin_infer=()
if [ -n "$TWIN" ]; then
  twin_train=("--twin=$TWIN ARCH SIZE BATCH 0 MODE")
  twin_infer=("--twin=$TWIN ARCH SIZE BATCH 0 infer" --twin_modes=infer)
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

step=(benchmarks/train_step.py --encoders=resnet50 --batches=16 --steps=20)
measure step 150 "$PYTHON" "${step[@]}" --rounds=1 --peak_tflops=989 --json="$OUT/step.json" \
  "${twin_train[@]}"
if [ -n "${FORMER:-}" ]; then
  FORMER=$(cd "$FORMER" && pwd)
  measure former 90 env -C "$FORMER" PYTHONPATH="$FORMER" "$PYTHON" "${step[@]}"
fi
measure frames 120 "$PYTHON" benchmarks/infer.py --encoders=xception65,mobilenet_v2 --batches=8,1 \
  --rounds=2 --json="$OUT/frames.json" "${twin_infer[@]}"
if [ -n "${RUN:-}" ] && [ -n "${FRAMES:-}" ]; then
  measure files 60 "$PYTHON" benchmarks/infer.py --run_dirs="$RUN" --frames="$FRAMES" --batches=8 --rounds=1
fi
if [ -n "${RECORDS:-}" ]; then
  measure records 90 "$PYTHON" "${step[@]}" --rounds=1 --records_dir="$RECORDS"
fi
measure keras_convolutions 90 "$PYTHON" "${step[@]}" --rounds=1 --keras_convolutions
measure forms 60 "$PYTHON" benchmarks/forms.py --batch=16 --dtype=bfloat16
