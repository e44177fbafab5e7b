# `make demo` and `make test` need nothing prepared: the first of them makes the environment,
# later ones find it. PYTHON names another interpreter; PIP_INDEX_URL and its kin are pip's own.

PYTHON ?= python3
BIN := .venv/bin
MAKE_VENV = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("cellray needs Python 3.11 or newer; set PYTHON=")' \
  && { test -x $(1)/bin/pip || $(PYTHON) -m venv $(1) \
  || { $(PYTHON) -m venv --clear --without-pip $(1) && $(PYTHON) -m pip --python $(1)/bin/python install pip; }; }

.DEFAULT_GOAL := help
.PHONY: help install demo docs lint format test test-slow test-all bench-bladder bench-evaluate bench-feed bench-first-layer bench-gpu bench-methods bench-readers bench-surface bench-sweep bench-tasks bench-train clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed  ## make .venv with the pinned versions

demo: .venv/.installed  ## real counts to a registered, evaluated model
	$(BIN)/cellray demo

docs: .venv/.installed  ## the site, into build/docs; warnings are errors
	$(BIN)/sphinx-build -E -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

lint: .venv/.installed  ## style, types and floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed  ## rewrite the files in the house's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Two tests at a time: most wait for processes to start, or use one core. A file's tests stay
# together, with the servers and models that they share (groups do nothing: pytest-xdist 3.8 does not
# see them with pytest 9.2). Sweeps of several trials want both processors.
test: lint .venv-s3/.installed  ## all that CI runs, but for the long matrices
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

# SHARE=0/8 runs an eighth of them, 1/8 another. Status 5: none of the sweeps is in that share.
test-slow: .venv/.installed .venv-s3/.installed  ## the long matrices; SHARE=K/N: one share of them
	$(BIN)/pytest -n 2 --dist loadfile -m slow $(if $(SHARE),--share $(SHARE)) --ignore tests/integration/test_sweep.py
	$(BIN)/pytest -m slow $(if $(SHARE),--share $(SHARE)) tests/integration/test_sweep.py || test $$? = 5

test-all: test test-slow  ## both

DATA ?= ../shared/data

bench-bladder: .venv/.installed  ## pre-train on real counts, score beside the baselines
	$(BIN)/python tests/benchmarks/bladder.py $(DATA)/mouse_bladder_2100.h5ad

bench-feed: .venv/.installed .venv-scdataset/.installed .venv-annbatch/.installed  ## measure the feed beside other loaders
	$(BIN)/python tests/benchmarks/feed.py $(ARGS)

bench-readers: .venv/.installed  ## time the atlas's reader beside zarrs and zarr
	$(BIN)/python tests/benchmarks/readers.py

bench-methods: .venv/.installed  ## pre-train by every method on real counts, score the embeddings
	$(BIN)/python tests/benchmarks/methods.py $(DATA)/mouse_bladder_2100.h5ad

bench-train: .venv/.installed  ## time training on one worker and two, checkpoints, coming back
	$(BIN)/python tests/benchmarks/train.py $(ARGS)

bench-sweep: .venv/.installed  ## time what a trial of a sweep costs beyond its training
	$(BIN)/python tests/benchmarks/sweep.py $(ARGS)

bench-evaluate: .venv/.installed  ## time embedding and evaluation, and their memory, as cells grow
	$(BIN)/python tests/benchmarks/evaluate.py $(ARGS)

bench-tasks: .venv/.installed  ## pre-train on small real data, and evaluate by every task
	$(BIN)/python tests/benchmarks/tasks.py $(DATA) $(ARGS)

bench-surface: .venv/.installed  ## record short runs over a grid, and search what is recorded
	$(BIN)/python tests/benchmarks/surface.py $(DATA)/mouse_bladder_2100.h5ad

bench-gpu: .venv/.installed  ## measure training steps on a GPU, and what of them is no product
	$(BIN)/python tests/benchmarks/gpu.py $(ARGS)

bench-first-layer: .venv/.installed  ## time training steps on a CPU, dense and sparse
	$(BIN)/python tests/benchmarks/first_layer.py

clean:  ## remove what the tools left; environments and .cellray stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis

.venv/.installed: pyproject.toml constraints.txt
	$(call MAKE_VENV,.venv)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

# The S3 server keeps its own versions, apart from cellray's.
.venv-s3/.installed: platform/cellray/cluster/swift-constraints.txt
	$(call MAKE_VENV,.venv-s3)
	.venv-s3/bin/python -m pip install -r platform/cellray/cluster/swift-constraints.txt
	touch $@

# scDataset is measured in cellray's own environment; its dependencies are there.
.venv-scdataset/.installed: .venv/.installed
	$(BIN)/python -m pip install --no-deps --upgrade --target .venv-scdataset scdataset==0.3.0
	touch $@

# annbatch needs Python 3.12: without one the benchmark says so and leaves it out.
NEWER := $(addprefix python3.,14 13 12) $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python) python3
PYTHON312 ?= $(shell for python in $(NEWER); do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$python && break; done)

.venv-annbatch/.installed: PYTHON = $(PYTHON312)
.venv-annbatch/.installed: tests/benchmarks/annbatch-constraints.txt
	@if test -z '$(PYTHON312)'; then echo 'no Python >= 3.12 found: annbatch is left out; set PYTHON312='; \
	else $(call MAKE_VENV,.venv-annbatch) && .venv-annbatch/bin/python -m pip install -r $< && touch $@; fi
