# Everything installs itself into .venv; `make demo` and `make test` are all one needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two at once, since a test of Ray waits for half of its time. One alone: make test PROCESSES=0
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadgroup

# What pip prints, as a line that counts on a terminal, and as a line for every 25 packages elsewhere.
define PROGRESS
import sys
count, terminal = 0, sys.stdout.isatty()
for line in sys.stdin:
    word, _, rest = line.partition(" ")
    count += word == "Collecting"
    if word == "Collecting" and (terminal or count % 25 == 0):
        print(f"\r\x1b[Kfound {count}: {rest.split()[0]}" if terminal else f"found {count}", end="" if terminal else "\n", flush=True)
    elif line.startswith("Installing collected"):
        print(("\n" if terminal else "") + f"installing {line.count(',') + 1} packages", flush=True)
endef
export PROGRESS

SHELL := bash
# Setuptools warns in a box of folders beside the package, which an editable installation is all about.
PIP := PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install -c constraints.txt

.PHONY: help demo test test-slow check format lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: make PYTHON=python3 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, and some GB"
	$(PIP) --quiet --upgrade pip
	@set -o pipefail; $(PIP) -e '.[dev]' | $(PYTHON) -c "$$PROGRESS"
	touch $(STAMP)

demo: $(STAMP)  ## the whole way on a synthetic archive: results under demo/
	$(BIN)/python pipelines/demo.py --output demo

test: $(STAMP)  ## tests that a user runs
	$(PYTEST) -m 'not slow'

test-slow: $(STAMP)  ## kills, clusters, a browser, compilation, sweeps, the whole demo
	$(PYTEST) -m slow

check: $(STAMP)  ## format, lint, types, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint cluster/Dockerfile

format: $(STAMP)  ## apply the formatter and the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP)  ## write the versions that are installed now to constraints.txt
	{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } >constraints.new
	mv constraints.new constraints.txt

clean:  ## remove the demo's results and all caches (keeps .venv)
	rm -rf demo .mypy_cache .ruff_cache .pytest_cache build
