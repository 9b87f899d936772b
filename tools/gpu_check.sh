#!/usr/bin/env bash
# Checks training on one CUDA GPU, in ten minutes at most: see tools/gpu_check.py.
#
#   tools/gpu_check.sh                          the demo, 64 entries on a 1B shape, PEFT, a 7B in nf4
#   tools/gpu_check.sh --model smollm2.gguf     another file for the demo
#   tools/gpu_check.sh --device cpu --quick     tiny shapes, to see that it runs
#
# Nothing is downloaded. Python is $PYTHON, else that of .venv, else python3, and needs torch,
# transformers, peft and bitsandbytes. Wheels in the folder $WHEELS (default .whl) are used before
# what is installed. The report is $OUT/gpu_check.json (default runs/gpu), written after each part,
# so that a run that is cut off leaves what it has.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
path=$PWD/src:$PWD/tools
if compgen -G "${WHEELS:-.whl}/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --target "$site" "${WHEELS:-.whl}"/*.whl
  path=$path:$site
fi
export PYTHONPATH=$path PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
timeout --signal=INT 590 "$python" tools/gpu_check.py --out "${OUT:-runs/gpu}" "$@"
