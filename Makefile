# Everything a fresh machine needs is Python 3.11-3.13, make and a package registry.
#
#   make demo           install, then run the main job on the embedded demo (ARGS="--train.epochs 10" adds overrides)
#   make test           install with the developers' tools, then run the test suite (ARGS="-k top_k -x")
#   make test-slow      the longer tests: whole runs of every kind, a quarter of the matrix of faults, killed jobs
#   make test-faults    the rest of the matrix, lost nodes, a grid of settings, a small object store, random kills
#                       (a hundred; UPL_KILLS=20: fewer)
#   make lint           ruff, mypy and pip check
#   make bench          the benchmarks (benchmarks/README.md), each with one line of JSON
#   make bench-gpu      the benchmarks of a GPU and the tests that need one (ARGS=--quick: two backbones, 100 classes)
#   make demo-weights   train the demo's backbones again
#   make constraints    resolve constraints.txt again, keeping the pins that still fit (UPGRADE=1: newest of everything)
#   make clean          remove the environment and all caches
#
# PYTHON=/path/to/python chooses the interpreter; VENV=folder another place for the environment.

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults lint bench bench-gpu demo-weights constraints clean
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?=
ARGS ?=
UPGRADE ?=

export RAY_USAGE_STATS_ENABLED = 0
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# The pins were resolved and tested on Linux x86_64. Elsewhere the ranges of pyproject.toml decide.
PINS := $(if $(filter Linux-x86_64,$(shell uname -s -m | tr ' ' -)),--constraint constraints.txt)
# The tests that take longest end the log.
PYTEST = $(VENV)/bin/python -m pytest --durations=15 --durations-min=5
INSTALL = $(VENV)/bin/python -m pip install --quiet $(PINS) --build-constraint constraints.txt

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/python jobs/upl.py $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not faults" $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not faults" $(ARGS)

test-faults: $(VENV)/.installed-dev
	$(PYTEST) -m faults -s $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy $(wildcard upl_ray jobs benchmarks)
	$(VENV)/bin/python -m pip check

bench: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.prompt_step $(ARGS)
	$(VENV)/bin/python -m benchmarks.training
	$(VENV)/bin/python -m benchmarks.memory
	$(VENV)/bin/python -m benchmarks.selection

bench-gpu: $(VENV)/.installed-dev
	$(VENV)/bin/python -m benchmarks.gpu $(ARGS)

demo-weights: $(VENV)/.installed
	$(VENV)/bin/python -m upl_ray.demo.pretraining.pretrain $(ARGS)

# A candidate must really run: version managers leave python3.X commands on the path that only print an error.
$(VENV)/bin/python:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	      >/dev/null 2>&1; then \
	    echo "Creating $(VENV) with $$("$$python" --version)"; exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "No usable Python: upl-ray needs Python 3.11, 3.12 or 3.13 with the venv module$(if $(PYTHON),; $(PYTHON) is not)." \
	  "Install one (on Debian also python3-venv) or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1

# pip itself first, at its pinned version: the one that venv brings knows no --build-constraint.
$(VENV)/.pip: constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet "$$(grep '^pip==' constraints.txt)"
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.pip
	@echo "Installing upl-ray and what it needs (5.6 GB, mostly CUDA; one to several minutes)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.pip
	@echo "Installing upl-ray with the developers' tools (5.8 GB, mostly CUDA; one to several minutes)"
	$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $@

# One version of every package for all three Pythons: each resolution is bound by the pins of the one before.
constraints: | $(VENV)/.pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt uv
	@set -e; new=$(VENV)/constraints; grep '^#' constraints.txt >$$new.head; \
	$(if $(UPGRADE),: ,grep -v '^#' constraints.txt )>$$new.keep; : >$$new.pins; \
	for version in 3.11 3.12 3.13; do \
	  cp $$new.keep $$new.one; \
	  printf '%s\n' hatchling editables pip uv | $(VENV)/bin/uv pip compile --quiet --no-header --no-annotate \
	    --python-platform linux --python-version $$version --extra dev --constraint $$new.pins \
	    --output-file $$new.one pyproject.toml - >/dev/null; \
	  LC_ALL=C sort -u $$new.one $$new.pins >$$new.all; mv $$new.all $$new.pins; cp $$new.pins $$new.keep; \
	done; \
	cat $$new.head $$new.pins >constraints.txt; rm -f $$new.*; echo "constraints.txt: $$(grep -c == constraints.txt) pins"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
