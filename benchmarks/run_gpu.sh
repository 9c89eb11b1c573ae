#!/usr/bin/env bash
# Everything about a CUDA GPU in one command: benchmarks/run_gpu.sh HEADLINES [FOLDER]
# HEADLINES is what `faisca run --data` takes; results go to FOLDER, benchmarks/results by default.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() {
  echo "faisca: $*" >&2
  exit 2
}
headlines=${1:-}
case $headlines in
  "") fail "name the headlines: benchmarks/run_gpu.sh HEADLINES [FOLDER]" ;;
  sample | hub | hub:*) ;;
  *) [ -e "$headlines" ] || fail "$headlines does not exist: name a file or folder, or sample, hub or hub:OWNER/NAME" ;;
esac
out=${2:-benchmarks/results}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())' 2>/dev/null) ||
  fail "$python has no torch that finds a CUDA GPU: install torch's CUDA build, or name a Python that has it with PYTHON="
mkdir -p "$out"

echo "estimate: 10 minutes for the tables, and some for the whole run" >&2
peers=reference,nanogpt
"$python" -c 'import transformers' 2>/dev/null && peers+=,transformers
# in bfloat16 the losses agree with the float32 reference to two digits only: two tables
"$python" -m faisca bench --preset faisca --backends torch --device cuda --dtype float32 --peers "$peers" --json "$out/$gpu-float32.json"
"$python" -m faisca bench --preset faisca --backends torch --device cuda --dtype bfloat16 --json "$out/$gpu-bfloat16.json"
if "$python" -c 'import mlx.core as mx; raise SystemExit(not mx.cuda.is_available())' 2>/dev/null; then
  "$python" -m faisca bench --preset faisca --backends mlx --device gpu --json "$out/$gpu-mlx.json"
else
  echo "MLX's CUDA build is not installed (pip install '.[mlx-cuda]'): not measured" >&2
fi
"$python" -m faisca run --preset faisca --backend torch --device cuda --data "$headlines" --out "runs/$gpu-$(date +%Y%m%d-%H%M%S)"
