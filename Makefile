# Two commands from nothing: `make demo` and `make test`. Both set up .venv first; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
# Test files run side by side, each with one thread per library: twice as fast as one file after the other on two cores.
JOBS ?= 2
# How long `make fuzz` takes for all readers together, on one core.
MINUTES ?= 5
# What `make test` and `make quick` run: a test file or folder instead of all of them.
T ?=

.PHONY: help setup demo test quick test-oldest lint flags lock fuzz clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'make test T=PATH   run the tests of one file or folder, without the lint'

setup: .venv/.installed ## make .venv and install the project with everything its tests need

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "large2small needs Python 3.10 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 demo")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup ## run the whole pipeline on handwritten digits and print the table (minutes)
	$(BIN)/distill demo --output demo-run --overwrite

test: setup $(if $(T),,lint) ## lint, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 $(T)

quick: setup ## run the tests that are not marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 -m 'not slow' $(T)

test-oldest: .venv-oldest/.installed ## run the quick tests with the lowest versions that pyproject.toml allows, in .venv-oldest
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 -m 'not slow' $(T)

.venv-oldest/.installed: pyproject.toml tests/helpers/lowest_versions.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12) and "the lowest versions have wheels for Python 3.10 and 3.11; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.10 test-oldest")'
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python tests/helpers/lowest_versions.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --editable '.[dev]' --constraint .venv-oldest/constraints.txt
	touch $@

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

flags: setup ## write large2small/flags.py, the keywords of `import large2small`, after a flag has changed
	$(BIN)/python tests/helpers/python_flags.py

lock: setup ## write requirements.lock, the installed versions of what [cpu] needs, with hashes from the index
	$(BIN)/python tests/helpers/locked.py > requirements.lock.new
	mv requirements.lock.new requirements.lock

fuzz: setup ## read mutated files with every reader for MINUTES=5; faults are kept in fuzz-found/
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/fuzzer.py --minutes $(MINUTES)

clean: ## remove the virtual environments, builds, the folders of the demo and of the fuzzer
	rm -rf .venv .venv-oldest build *.egg-info demo-run fuzz-found
