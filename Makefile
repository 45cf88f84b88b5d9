# SPDX-License-Identifier: Apache-2.0
# Every command makes the environment it needs on first use: with uv where it
# is present, else with venv and pip, from the same hash-pinned files.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-compile test-newest \
  lint types benchmark replicate pins

# Only a package registry may be reachable, so uv must not fetch interpreters.
export UV_PYTHON_DOWNLOADS := never
# Trust what the machine trusts, as pip does.
export UV_SYSTEM_CERTS := 1
# An active environment or a search path of the caller's must not leak in.
unexport PYTHONPATH
unexport VIRTUAL_ENV

VENV := .venv
PY := $(VENV)/bin/python
NEWEST := .venv-newest
COMPILE := .venv-compile
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)

# The first of some commands that runs (a version shim may not) and is Python
# 3.$(1) or newer. Without uv it must have ensurepip, packaged apart on Debian.
find = $(shell for python in $(2); do $$python -c 'import sys \
  $(if $(UV),,; import ensurepip, venv); \
  sys.version_info >= (3, $(1)) and print(sys.executable)' 2>/dev/null \
  | grep . && break; done)
PYTHON = $(call find,11,python3.13 python3.12 python3.11 python3 python)
NEWEST_PYTHON = $(call find,12,python3.14 python3.13 python3.12 python3 python \
  $(shell ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.*/bin/python3 \
    2>/dev/null | sort -rV))

# $(call create,FOLDER,PYTHON); $(call install,FOLDER) ARGUMENTS
ifdef UV
create = uv venv --quiet --clear --python $(2) $(1)
install = uv pip install --quiet --python $(1)/bin/python
else
create = $(2) -m venv --clear $(1)
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check
endif
# The package itself, from the checkout: setuptools is there, nothing is fetched.
editable = --no-deps --no-build-isolation --editable .

help:
	@echo "make demo         train the losses on real data and write a report"
	@echo "make test         run every test"
	@echo "make test-full    the full cross of the linear heads' settings"
	@echo "make test-compile compiles for TPUs and a GPU, with neither at hand"
	@echo "make test-newest  the same on the newest jax, with Python 3.12 or newer"
	@echo "make lint         check style and formatting"
	@echo "make types        check types"
	@echo "make benchmark    measure speed and memory against a peer"
	@echo "make replicate    test the paper's claim on 47 data sets (1.5 hours if anew)"
	@echo "make pins         renew requirements/*.txt (needs uv)"
	@echo "PYTHON=... names the Python that makes the environment."

$(VENV)/.made:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer$(if $(UV),, with venv) was found on the" \
	    "path. Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	if ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  2>/dev/null; then \
	  echo "Making $(VENV) with $$($$python --version)"; \
	  $(call create,$(VENV),$$python); \
	fi
	@$(if $(UV),,$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip)
	@touch $@

# $(VENV)/.study and $(VENV)/.test stand for the files of those names.
$(VENV)/.%: requirements/%.txt setup.cfg pyproject.toml $(VENV)/.made
	@echo "Installing $< into $(VENV) (once; about 0.7 GB)"
	@$(call install,$(VENV)) --require-hashes --requirement $<
	@$(call install,$(VENV)) $(editable)
	@touch $@

demo: $(VENV)/.study
	$(VENV)/bin/squentropy-study run digits --fresh --out reports/digits

# Float64 is a setting of the process, so its tests run in one of their own.
test: $(VENV)/.test
	JAX_ENABLE_X64=0 $(PY) -m pytest -n 2
	JAX_ENABLE_X64=1 $(PY) -m pytest -n 2

lint: $(VENV)/.test
	$(PY) -m ruff check
	$(PY) -m ruff format --check

types: $(VENV)/.test
	$(PY) -m mypy

# Fetches its data; what has results is skipped, what was stopped goes on.
replicate: $(VENV)/.test
	@$(PY) -m pip --version >/dev/null 2>&1 || $(call install,$(VENV)) pip
	$(PY) -m replication

benchmark: $(VENV)/.test
	$(PY) -m benchmarks

test-full: $(VENV)/.test
	$(PY) -m pytest -n 2 -m full

# Apart, because jax looks for devices of every platform it is installed for.
$(COMPILE)/.made: requirements/compile.txt $(VENV)/.made
	@echo "Installing $< into $(COMPILE) (once; about 2 GB)"
	@$(call create,$(COMPILE),$(PY))
	@$(call install,$(COMPILE)) --require-hashes --requirement $<
	@touch $@

test-compile: $(COMPILE)/.made
	$(COMPILE)/bin/python -m pytest tests/compile_test.py

# Not pinned on purpose: this says whether today's releases still work.
test-newest:
	@python="$(NEWEST_PYTHON)"; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.12 or newer was found, which the newest jax needs." >&2; \
	  exit 1; \
	fi; \
	if ! $(NEWEST)/bin/python -c '' 2>/dev/null; then \
	  $(call create,$(NEWEST),$$python); \
	fi
	$(call install,$(NEWEST)) --upgrade --editable '.[study,tables,test]'
	JAX_ENABLE_X64=0 $(NEWEST)/bin/python -m pytest -n 2
	JAX_ENABLE_X64=1 $(NEWEST)/bin/python -m pytest -n 2

compile = uv pip compile --quiet --upgrade --universal --python-version 3.11 \
  --generate-hashes --no-header --no-annotate --no-emit-index-url \
  --no-emit-find-links

# The demo's pins are a part of the tests': both go into one environment.
pins:
	$(compile) setup.cfg --extra study --extra tables --extra test --extra dev \
	  --output-file requirements/test.txt
	$(compile) setup.cfg --extra compile --extra test \
	  --constraint requirements/test.txt --output-file requirements/compile.txt
	echo 'setuptools>=77' | $(compile) setup.cfg - --extra study \
	  --constraint requirements/test.txt --output-file requirements/study.txt
