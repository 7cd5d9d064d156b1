# `make demo` runs the main job on the embedded model; `make test` is everything that CI checks.
# Both need Python 3.11 or later and make, and build .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An explicit version lets pip take a CPU build of torch where one is on offer; any other way of
# asking pulls gigabytes of CUDA packages. Override for a GPU: make TORCH="torch" ...
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
OUT ?= out/demo

.PHONY: help demo test lint types unit real install benchmarks organisms clean

help:
	@echo "make demo        map, edit and verify the embedded model (output in $(OUT))"
	@echo "make test        lint, types and all tests, as CI runs them"
	@echo "make unit        the fast tests only"
	@echo "make benchmarks  the measured figures of docs/benchmarks.md"
	@echo "make organisms   grow the labelled organisms, and retrain the embedded model's adapter"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt "$(TORCH)"
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/obliteratus demo --output $(OUT) --force

test: lint types unit real

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/basedpyright

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real_model and not slow" -n auto --dist worksteal

real: install
	$(BIN)/python -m pytest -m "real_model or slow"

benchmarks: install
	$(BIN)/python benchmarks/probe.py qwen2.5-coder-0.5b
	$(BIN)/python benchmarks/main_job.py qwen2.5-coder-0.5b -o out/benchmark --fresh

organisms: install
	OMP_NUM_THREADS=1 $(BIN)/python organisms/forbidden_words.py
	$(BIN)/python organisms/smollm2_refuser.py

clean:
	rm -rf $(VENV) out .pytest_cache .ruff_cache .hypothesis
