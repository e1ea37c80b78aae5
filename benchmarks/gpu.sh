#!/usr/bin/env bash
# Runs the GPU measurements, most important first, each with a time limit; at most 25 minutes.
#
#   OUT=FOLDER [TWIN="python torch_twin.py"] [RECORDS=FOLDER] [RUN=FOLDER FRAMES=FOLDER] \
#       benchmarks/gpu.sh
#
# TWIN accepts ENCODER HxW BATCH 0|1 train|infer and prints JSON with images_per_s; it runs in a
# separate environment. Results and errors are written to OUT, which the last measurements may leave
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

step=(benchmarks/train_step.py --batches=16 --steps=50 --rounds=1)
records=()
[ -n "${RECORDS:-}" ] && records=(--records_dir="$RECORDS")
for encoder in resnet50 xception65; do
  measure "step_$encoder" 150 "$PYTHON" "${step[@]}" --encoders=$encoder --peak_tflops=989 \
    --json="$OUT/step_$encoder.json" "${records[@]}" "${twin_train[@]}"
  measure "frames_$encoder" 150 "$PYTHON" benchmarks/infer.py --encoders=$encoder --batches=8 \
    --rounds=1 --json="$OUT/frames_$encoder.json" "${twin_infer[@]}"
done
profile=("$PYTHON" benchmarks/operations.py --calls=10 --top=10)
measure operations_infer 120 "${profile[@]}" --mode=infer --batch=8
measure operations_train 120 "${profile[@]}" --mode=train --batch=16
compiled=$(mktemp -d)
trap 'rm -rf "$compiled"' EXIT
measure xla 300 "$PYTHON" "${step[@]}" --encoders=resnet50 --xla=on --compile_cache_dir="$compiled"
if [ -n "${RUN:-}" ] && [ -n "${FRAMES:-}" ]; then
  measure files 240 "$PYTHON" benchmarks/infer.py --run_dirs="$RUN" --frames="$FRAMES" --batches=8 --rounds=1
fi
measure forms 120 "$PYTHON" benchmarks/forms.py --batch=16 --dtype=bfloat16
