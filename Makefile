# One environment, .venv, made once; every target below starts from it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A stamp, so that a second `make` installs nothing; it is remade when what is installed changes.
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup setup-device-twin demo test test-gpu test-slow check check-cubins format clean
# A GPU host of ours has other versions: Python 3.12, Triton 3.6.0, numpy 2; these here are the same without the GPU.
DEVICE_PYTHON ?= python3.12
TWIN := .venv-device-twin

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: $(READY)  ## make .venv with everything installed

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (about 3 GB, a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

setup-device-twin: $(TWIN)/.installed  ## make .venv-device-twin, with the versions of a GPU host

$(TWIN)/.installed: bench/device/host.txt bench/device/stand_ins.py
	@command -v $(DEVICE_PYTHON) >/dev/null || { echo "no $(DEVICE_PYTHON) here; give one as DEVICE_PYTHON=" >&2; exit 1; }
	@echo "setting up $(TWIN) (about 3 GB, a few minutes, once)"
	$(DEVICE_PYTHON) -m venv $(TWIN)
	$(TWIN)/bin/pip install --quiet --requirement bench/device/host.txt
	$(TWIN)/bin/pip install --quiet --no-deps torch==2.11.0
	$(TWIN)/bin/python bench/device/stand_ins.py $(TWIN)/lib/python3.12/site-packages/torch/lib
	@touch $@

demo: $(READY)  ## the main job on MovieLens-100K: train, export, serve, recommend
	@$(BIN)/fuserec demo

test: $(READY)  ## the fast tests, kernels in the interpreter and the real server included
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-cubins: $(READY)  ## all GPU kernels for all architectures: spills, loads, tensor cores
	$(BIN)/python -m bench.cubins --check

format: $(READY)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the targets made, the environment included
	rm -rf $(VENV) $(TWIN) build dist
