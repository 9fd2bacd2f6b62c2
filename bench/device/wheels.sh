#!/usr/bin/env bash
# Collects what a GPU host lacks for the served run, to travel with the checkout: bench/device/wheels.sh [PYTHON]
#
#     wheels/1   the inference server and the small packages      with the tree: one call of 64 MiB
#     wheels/2   polars and numpy 1, which the server needs       a second call; what the first brought stays there
#     wheels/served   an untrained checkpoint and its repository, made by bench.serving.on_device
#
# Everything but the served run needs none of it. The folder is ignored by git, so that it has to be named to be carried.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${1:-.venv/bin/python}"
most_mib=64
folder=bench/device/wheels
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
    pydantic==2.14.3 pydantic-core==2.50.4 uvicorn==0.54.0 httptools==0.9.0 orjson==3.13.0 sh==2.4.0
download 2 polars==1.30.0 numpy==1.26.4
if [ -f bench/serving/on_device.py ]; then
    "$python" -m bench.serving.on_device prepare --folder "$folder/served"
fi
tree=$(git ls-files -z | xargs -0 du --bytes --total | awk '/total$/ { sum += $1 } END { print sum }')
for load in "$folder/1" "$folder/2"; do
    bytes=$(du --bytes --summarize "$load" | cut -f1)
    served=$([ "$load" = "$folder/2" ] && [ -d "$folder/served" ] && du --bytes --summarize "$folder/served" | cut -f1 || echo 0)
    mib=$(((tree + bytes + served) / 1048576 + 1))
    if [ "$mib" -gt "$most_mib" ]; then
        echo "$load takes $mib MiB with the tree, more than $most_mib: it cannot travel in one call" >&2
        exit 1
    fi
    echo "$load: $mib MiB with the tree"
done
