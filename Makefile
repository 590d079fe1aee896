# Two commands: `make demo` (method against baseline, with a verdict) and `make test` (lint, types, tests).
# Both make their own environment in .venv, and a second run finds it there. A refuted claim is no failure of the demo;
# a run that failed is.
#
#   PYTHON=python3.12    another interpreter (3.11 or newer)
#   EXTRAS=dev           what `make test` installs beside the package; without trl,verl the parity tests are skipped
#   PIP_ARGS=...         further arguments for pip, such as an index with CPU builds of torch
#   JOBS=2               processes at a time

.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV ?= .venv
EXTRAS ?= dev,trl,verl
JOBS ?= 2
PIP_ARGS ?=
DEMO_ARGS ?= --arms gdpo,grpo --seeds 0-1 --profile quick

# The first interpreter that runs and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq -c constraints.txt $(PIP_ARGS)
BWRAP := $(shell command -v bwrap 2>/dev/null)
INPUTS := pyproject.toml constraints.txt Makefile

.PHONY: help demo test env env-test lint types unit docs clean

help:
	@echo "make demo    compare GDPO with GRPO on a small real task: table, verdict, HTML report"
	@echo "make test    lint, types and tests"
	@echo "make lint | types | unit | docs    one of them alone"
	@echo "make clean   remove the environment and the caches (not your runs)"

$(VENV)/.stamp-venv:
	@if [ -z "$(PYTHON)" ]; then echo "concordant needs Python 3.11 or newer; name one with PYTHON=/path/to/python" >&2; exit 2; fi
	@echo "== environment: $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv --clear $(VENV) || { echo "the venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@touch $@

# torch first and alone: the constraints file then keeps every later step from replacing it.
$(VENV)/.stamp-base: $(VENV)/.stamp-venv $(INPUTS)
	@echo "== installing the package (a few minutes the first time)"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-base
	@echo "== installing the test tools: $(EXTRAS)"
	@$(PIP) --editable ".[$(EXTRAS)]"
	@touch $@

env: $(VENV)/.stamp-base
env-test: $(VENV)/.stamp-test

demo: env
	@$(PY) -m concordant compare gdpo $(DEMO_ARGS) --jobs $(JOBS); code=$$?; \
	if [ $$code -eq 1 ] && grep -q '"failures": \[\]' runs/gdpo/result.json; then code=0; fi; exit $$code

test: lint types unit

lint: env-test
	@echo "== ruff"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: env-test
	@echo "== mypy"
	@$(VENV)/bin/mypy

unit: env-test
	@echo "== pytest"
	@$(if $(BWRAP),,echo "bubblewrap is not installed: the tests marked 'sandbox' are left out (Debian: apt-get install bubblewrap)" >&2)
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest -n $(JOBS) $(if $(BWRAP),,-m "not sandbox") $(PYTEST_ARGS)

docs: env
	@$(PY) scripts/make_docs.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
