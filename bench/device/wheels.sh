#!/usr/bin/env bash
# Collects what a bare GPU host lacks for the served run, to be copied there: bench/device/wheels.sh [PYTHON]
#
#     1   the inference server and the small packages
#     2   polars
#     3   numpy 1, which the server reads, and an untrained checkpoint with its repository
#
# Each is less than 64 MiB with the checkout, for hosts that take no more at a time. Everything but the served run needs
# none of it.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${1:-.venv/bin/python}"
most_mib=64
folder=build/device-wheels
download() {
    mkdir -p "$folder/$1"
    local platforms=()
    for name in manylinux_2_35 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
        platforms+=(--platform "${name}_x86_64")
    done
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" --dest "$folder/$1" "${@:2}"
}
download 1 nvidia-pytriton==0.7.0 tritonclient==2.73.0 python-rapidjson==1.25 fastapi==0.165.0 starlette==1.10.0 \
    pydantic==2.14.3 pydantic-core==2.50.4 uvicorn==0.54.0 httptools==0.9.0 orjson==3.13.0 typing-inspection==0.4.5 opentelemetry-api
download 2 polars==2.1.0 polars-runtime-32==2.1.0
download 3 numpy==1.26.4
rm -rf "$folder/3/served"
# A graph does not run under an older ONNX Runtime than the one that it was exported with.
"$python" -m bench.serving.on_device prepare --folder "$folder/3/served" \
    --onnxruntime "$(sed -n 's/^onnxruntime==//p' bench/device/host.txt)"
tree=$(git ls-files -z | xargs -0 du --bytes --total | awk '/total$/ { sum += $1 } END { print sum }')
for load in "$folder/1" "$folder/2" "$folder/3"; do
    bytes=$(du --bytes --summarize "$load" | cut -f1)
    mib=$(((tree + bytes) / 1048576 + 1))
    if [ "$mib" -gt "$most_mib" ]; then
        echo "$load takes $mib MiB with the tree, more than the $most_mib that a load may have" >&2
        exit 1
    fi
    echo "$load: $mib MiB with the tree"
done
