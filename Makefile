# Needs Python >= 3.10 (with venv and pip) and make; everything else goes into .venv.
#   make PYTHON=python3.12 ...      another interpreter for a new .venv
#   make test WORKERS=4 PYTEST_ARGS="-k orthogonal"
#   make bench BENCH_ARGS="--only orthogonal --rounds 11"

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-short bench bench-short check lint types floors docs test test-slow format clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("p4torch needs Python >= 3.10; $(PYTHON) is %d.%d" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[experiments,flows,lightning,huggingface,molecules,docs,dev]" -c constraints.txt
	@touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]" -c constraints.txt
	@touch $@

demo: $(STAMP) ## Train a density model
	$(BIN)/python -m experiments density --demo

demo-short: $(STAMP) ## The demo, cut to what a check needs
	$(BIN)/python -m experiments density --demo --short

bench: $(BENCH_STAMP) ## All benchmarks, against peers too; on a quiet machine
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# No peers: counts of operations and bytes, and a few ratios, against results/benchmarks/short.json.
bench-short: $(STAMP) ## Fail on what got 1.5 times worse
	$(BIN)/python -m benchmarks --short --check

check: lint types floors docs test test-slow bench-short demo-short ## All that CI runs: the targets below, and the short ones

lint: $(STAMP) ## Style and formatting (ruff), nothing changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Types (mypy, strict)
	$(BIN)/mypy src benchmarks examples experiments

floors: $(STAMP) ## Imports go down only (import-linter)
	$(BIN)/lint-imports

# Needs no network. Old pages would hide a link that has lost its target: made afresh each time.
docs: $(STAMP) ## The documentation's pages, in docs/_build; a warning is an error
	rm -rf docs/_build
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d docs/_build/.doctrees docs docs/_build
	@echo "docs/_build/index.html"

# One thread a worker: more would fight over the cores, and sums would depend on their number.
test: $(STAMP) ## All tests but the slow ones, two workers
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP) ## The slow tests, two workers
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow $(PYTEST_ARGS)

format: $(STAMP) ## Sort imports, apply safe fixes, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove caches and builds; .venv and runs/ stay
	rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
