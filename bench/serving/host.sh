#!/usr/bin/env bash
# Makes an environment for the served run over a Python that has torch, triton and numba, of wheels that were brought along:
#   bash bench/serving/host.sh WHEELS VENV        then      VENV/bin/python -m bench.serving.on_device measure ...
# A folder on PYTHONPATH would not do: the processes of the models are deaf to it, and take the packages of the first
# python3 on PATH. Of two versions of a package that of the wheels counts: numpy 1.26 before the host's numpy 2, whose
# arrays the bundled server misreads.
set -euo pipefail
wheels="$1" venv="$2" python="${PYTHON:-python3}" root="$(cd "$(dirname "$0")/../.." && pwd)"
"$python" -m venv --without-pip "$venv"
site="$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')"
"$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
# Last in the alphabet, and so after whatever the wheels bring of the kind.
{
    echo "$root/src"
    "$python" -c 'import site; print(*site.getsitepackages(), site.getusersitepackages(), sep="\n")'
} >"$site/zz-host.pth"
"$venv/bin/python" -c 'import numpy, torch; assert numpy.__version__ < "2", numpy.__version__; print(torch.__version__)'
