# The main targets are `make demo` and `make test`. Stamp files in .venv make reruns quick.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
DEMO := $(VENV)/.demo-installed
DEV := $(VENV)/.dev-installed
# Test files run in parallel; a test may start two processes itself.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv demo experiment test test-full lint quick docs constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO)  ## train on real clips, evaluate, upscale, run a small study (DEMO_SHORT=1 for a quick pass)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash demo.sh

experiment: $(DEMO)  ## run an experiment in the background, hours: make experiment NAME=drift; repeat to resume
	@test -f experiments/$(NAME).py || { echo "usage: make experiment NAME=drift (a script of experiments/)" >&2; exit 2; }
	@mkdir -p runs/$(NAME)
	@nohup nice -n 19 $(BIN)/python experiments/$(NAME).py $(OPTIONS) >> runs/$(NAME)/log.txt 2>&1 & \
	  echo "runs in the background: tail -f runs/$(NAME)/log.txt; stop it with: kill $$!; resume: make experiment NAME=$(NAME)"

test: lint  ## lint, types, import contracts, quick tests
	$(PYTEST) -m "not slow"

test-full: $(DEV)  ## slow tests: those that launch or kill processes, or run the commands in the docs
	$(PYTEST) -m slow

lint: $(DEV)  ## ruff, formatting, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: $(DEV)  ## ruff and the quick tests, stopping at the first failure
	$(BIN)/ruff check
	$(PYTEST) -q -x -m "not slow"

venv: $(DEV)  ## create .venv for development

docs: $(DEV)  ## build the documentation site into site/; checks links and pictures
	$(BIN)/mkdocs build --strict --quiet

constraints: $(DEV)  ## upgrade .venv within pyproject's ranges and write its versions to constraints.txt
	$(BIN)/python -m pip install --upgrade --upgrade-strategy eager -e ".[dev]"
	@{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude vsr-dist \
	  | grep -viE '^(#|-e|nvidia-|cuda-|triton==)' | LC_ALL=C sort -fu; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove caches, build output and demo/ (keeps .venv and runs/)
	rm -rf demo build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(MADE):
	@command -v $(PYTHON) > /dev/null || { \
	  echo "no $(PYTHON) found; install it, or name another Python >= 3.11: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(DEMO): $(MADE) pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time this downloads several GB"
	$(INSTALL) -e ".[demo]"
	@touch $@

$(DEV): $(MADE) pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time this downloads several GB"
	$(INSTALL) -e ".[dev]"
	@touch $(DEMO) $@
