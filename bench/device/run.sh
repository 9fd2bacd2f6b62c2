#!/usr/bin/env bash
# Spends a quarter of an hour on a GPU host that is as bare as it comes: `bash bench/device/run.sh [options]`.
# Results go to $OUT, or build/device. `--list` lists the steps, `--only STEP` repeats one, `--rehearse` runs without a
# device. The served run wants what bench/device/wheels.sh collects; without it, it says so and the rest runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
export OUT="${OUT:-$PWD/build/device}" PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
scratch="${TMPDIR:-/tmp}/fuserec-device"
# What the first run of a host compiles, the second finds.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$scratch/triton}" NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-$scratch/numba}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}"
for package in torch triton numpy numba; do
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$package') is None)" || {
        echo "$python has no $package; set PYTHON to one that has torch, triton, numpy and numba" >&2
        exit 2
    }
done
for option in "$@"; do
    # A rehearsal interprets the kernels, which Triton decides when it is imported.
    if [ "$option" = --rehearse ]; then export TRITON_INTERPRET=1; fi
done
exec "$python" -m bench.device "$@"
