# `make demo` and `make test` need nothing prepared: the first of them makes the environment,
# later ones find it. PYTHON names another interpreter; PIP_INDEX_URL and its kin are pip's own.

PYTHON ?= python3
BIN := .venv/bin
MAKE_VENV = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("cellray needs Python 3.11 or newer; set PYTHON=")' \
  && { test -x $(1)/bin/pip || $(PYTHON) -m venv $(1) \
  || { $(PYTHON) -m venv --clear --without-pip $(1) && $(PYTHON) -m pip --python $(1)/bin/python install pip; }; }

.DEFAULT_GOAL := help
.PHONY: help install demo lint format test test-slow test-all bench-bladder bench-indices clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed  ## make .venv with the pinned versions

demo: .venv/.installed  ## real counts to a registered, evaluated model
	$(BIN)/cellray demo

lint: .venv/.installed  ## style, types and floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed  ## rewrite the files in the house's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: lint .venv-s3/.installed  ## all that CI runs, but for the long matrices
	$(BIN)/pytest -m "not slow"

test-slow: .venv/.installed .venv-s3/.installed  ## the long matrices
	$(BIN)/pytest -m slow

test-all: test test-slow  ## both

DATA ?= ../shared/data

bench-bladder: .venv/.installed  ## pre-train on real counts, score beside the baselines
	$(BIN)/python tests/benchmarks/bladder.py $(DATA)/mouse_bladder_2100.h5ad

bench-indices: .venv/.installed  ## time reads by how gene indices are stored
	$(BIN)/python tests/benchmarks/index_storage.py

clean:  ## remove what the tools left; environments and .cellray stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis

.venv/.installed: pyproject.toml constraints.txt
	$(call MAKE_VENV,.venv)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

# The S3 server of the integration tests keeps its own versions, apart from cellray's.
.venv-s3/.installed: tests/integration/s3-constraints.txt
	$(call MAKE_VENV,.venv-s3)
	.venv-s3/bin/python -m pip install -r tests/integration/s3-constraints.txt
	touch $@
