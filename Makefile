# SPDX-License-Identifier: Apache-2.0
# Each command makes the environment that it needs on first use. It installs the
# hash-pinned files in requirements/ with uv if uv is installed, else with pip.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-compile test-newest \
  test-oldest lint types benchmark replicate replicate-lm docs figures \
  release-check pins

VENV := .venv
COMPILE := .venv-compile
NEWEST := .venv-newest
OLDEST := .venv-oldest
RELEASE := .venv-release
PY := $(VENV)/bin/python

# uv must not download interpreters: only a package registry may be reachable.
export UV_PYTHON_DOWNLOADS := never
# uv trusts the certificates of the machine, as pip does.
export UV_SYSTEM_CERTS := 1
# The caller's active environment and search path must not affect the commands.
unexport PYTHONPATH
unexport VIRTUAL_ENV

# $(call create,FOLDER,PYTHON) makes an environment.
# $(call install,FOLDER) ARGUMENTS installs packages into it.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
ifdef UV
# uv stops if it cannot write to its cache, which is in the home folder.
ifeq ($(shell cache=$$(uv cache dir) && mkdir -p "$$cache" 2>/dev/null && \
  test -w "$$cache" && echo yes),)
export UV_NO_CACHE := 1
endif
create = uv venv --quiet --clear --python $(2) $(1)
install = uv pip install --quiet --python $(1)/bin/python
modules = sys
else
create = $(2) -m venv --clear $(1)
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check
# Debian packages ensurepip separately, and venv does not work without it.
modules = sys, ensurepip
endif
# The checkout itself, built with the setuptools of the environment.
editable = --no-deps --no-build-isolation --editable .

# The first command that is a fitting Python, from 3.MINIMUM to 3.MAXIMUM. Each is
# run to find out, because a command may be a version manager's placeholder, which
# does not run.
MINIMUM := 11
MAXIMUM := 99
fits = (3, $(MINIMUM)) <= sys.version_info[:2] <= (3, $(MAXIMUM))
PYTHON = $(shell \
  for python in python3.13 python3.12 python3.11 python3.14 python3 python; do \
    "$$python" -c 'import $(modules); \
      print(sys.executable) if $(fits) else exit(1)' \
      2>/dev/null && break; \
  done)

# $(call alone,FOLDER) begins a recipe that changes FOLDER: it waits until no other
# make does. The lock is a link to the number of its process, because a link is made
# together with what it holds, and not all machines have flock.
define alone
set -e; lock=$(1).lock; told=; \
if ! [ -w . ]; then echo "Cannot write to $$PWD, where $(1) goes." >&2; exit 1; fi; \
until ln -s $$$$ "$$lock" 2>/dev/null; do \
  owner=$$(readlink "$$lock" || true); \
  if [ -n "$$owner" ] && ! kill -0 "$$owner" 2>/dev/null; then \
    echo "The make that worked on $(1) was stopped. Remove its lock, and run make" \
      "again: rm $$lock" >&2; exit 1; \
  elif [ -z "$$told" ]; then \
    told=1; echo "Waiting for another make, which works on $(1). If there is" \
      "none, remove $$lock" >&2; \
  fi; \
  sleep 1; \
done; \
trap 'rm -f "$$lock"' EXIT; trap 'exit 1' HUP INT TERM
endef

# $(call old,TARGET,FILES) is true if TARGET is missing, or older than a file. A
# make that has waited asks, because the other may have made TARGET.
old = [ -n "$$(find $(2) -newer $(1) 2>/dev/null || echo missing)" ]

# $(call environment,FOLDER) makes an environment unless a working one exists.
define environment
if ! $(1)/bin/python -c 'import sys; sys.exit(not $(fits))' 2>/dev/null; then \
  python="$(PYTHON)"; \
  if [ -z "$$python" ]; then \
    echo "Found no Python $(wanted)$(if $(UV),, with venv)." \
      "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
    exit 1; \
  fi; \
  echo "Making $(1) with $$("$$python" --version)"; \
  $(call create,$(1),"$$python"); \
fi
endef
wanted = 3.$(MINIMUM)$(if $(filter 99,$(MAXIMUM)), or newer)

help:
	@echo "make demo          compare losses on a small data set and write a report"
	@echo "make test          run all tests (about 30 minutes on two cores)"
	@echo "make lint          check style, formatting and wording with ruff and a word list"
	@echo "make types         check the types with mypy"
	@echo "make benchmark     measure speed and memory, next to other libraries"
	@echo "make test-full     test all combinations of the fused heads' options (15 minutes)"
	@echo "make test-compile  compile for TPU and GPU (no such device is needed)"
	@echo "make test-newest   run all tests with the newest jax (Python 3.12+)"
	@echo "make test-oldest   run all tests with the oldest allowed versions (Python 3.11)"
	@echo "make replicate     train missing runs of the replication, and write its page"
	@echo "make replicate-lm  train missing runs of the language model experiment (3 hours)"
	@echo "make docs          build the site into build/site/html (5 minutes)"
	@echo "make release-check build the release, install it alone and try it (5 minutes)"
	@echo "make figures       draw every figure of docs again, and write the pages of losses"
	@echo "make pins          update the pinned requirements (needs uv)"
	@echo
	@echo "Add PYTHON=/path/to/python3 to choose the Python to use."

$(VENV)/.made:
	@$(call alone,$(VENV)); \
	if ! [ -e $@ ]; then \
	  $(call environment,$(VENV)); \
	  $(if $(UV),,$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip;) \
	  touch $@; \
	fi

# $(VENV)/.study, $(VENV)/.test and $(VENV)/.docs record that the file of that
# name in requirements/ is installed.
$(VENV)/.%: requirements/%.txt setup.cfg pyproject.toml $(VENV)/.made
	@$(call alone,$(VENV)); \
	if $(call old,$@,$^); then \
	  echo "Installing $< into $(VENV) (once, about 0.7 GB)"; \
	  $(call install,$(VENV)) --require-hashes --requirement $<; \
	  $(call install,$(VENV)) $(editable); \
	  touch $@; \
	fi

DEMO = $(VENV)/bin/squentropy-study run digits --fresh --out reports/digits
demo: $(VENV)/.study
	@mkdir -p reports; $(call alone,reports/digits); \
	echo $(DEMO); $(DEMO)

# jax has one float width per process, so the float64 tests run separately.
test: $(VENV)/.test
	JAX_ENABLE_X64=0 $(PY) -m pytest -n 2 --dist loadgroup
	JAX_ENABLE_X64=1 $(PY) -m pytest -n 2 --dist loadgroup

test-full: $(VENV)/.test
	$(PY) -m pytest -n 2 --dist loadgroup -m full

lint: $(VENV)/.test
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) tests/support/lint.py

types: $(VENV)/.test
	$(PY) -m mypy

benchmark: $(VENV)/.test
	$(PY) -m benchmarks

# The replication downloads its data with pip, which uv does not install.
replicate: $(VENV)/.test
	@$(PY) -m pip --version >/dev/null 2>&1 || $(call install,$(VENV)) pip
	$(PY) -m replication

replicate-lm: $(VENV)/.test
	$(PY) -m replication.language_model

# The gallery needs what the study needs, which docs.txt includes.
docs: $(VENV)/.docs
	$(PY) docs/website/build_site.py

# The figures of docs/replication and docs/language_model are drawn from stored
# results.
figures: $(VENV)/.test
	$(PY) docs/figures.py
	$(PY) docs/page_figures.py
	$(PY) docs/loss_pages.py
	$(PY) docs/loss_table.py
	$(PY) -m replication.page
	$(PY) -m replication.language_model --runs 0

# A separate environment, because jax initialises every installed platform.
$(COMPILE)/.made: requirements/compile.txt $(VENV)/.made
	@$(call alone,$(COMPILE)); \
	if $(call old,$@,$^); then \
	  echo "Installing $< into $(COMPILE) (once, about 2 GB)"; \
	  $(call create,$(COMPILE),$(PY)); \
	  $(call install,$(COMPILE)) --require-hashes --requirement $<; \
	  touch $@; \
	fi

test-compile: $(COMPILE)/.made
	$(COMPILE)/bin/python -m pytest tests/compile_test.py

# Deliberately not pinned: this shows whether today's releases still work.
test-newest: MINIMUM := 12
test-newest:
	@$(call alone,$(NEWEST)); $(call environment,$(NEWEST)); \
	$(call install,$(NEWEST)) --upgrade \
	  --editable '.[study,tables,replication,pods,test]'
	JAX_ENABLE_X64=0 $(NEWEST)/bin/python -m pytest -n 2 --dist loadgroup
	JAX_ENABLE_X64=1 $(NEWEST)/bin/python -m pytest -n 2 --dist loadgroup

# The lowest versions that setup.cfg allows. Some have no wheels for Python 3.12.
$(OLDEST)/.made: MAXIMUM := 11
$(OLDEST)/.made: requirements/oldest.txt setup.cfg
	@$(call alone,$(OLDEST)); \
	if $(call old,$@,$^); then \
	  $(call environment,$(OLDEST)); \
	  echo "Installing $< into $(OLDEST) (once, about 0.7 GB)"; \
	  $(call install,$(OLDEST)) --require-hashes --requirement $<; \
	  $(call install,$(OLDEST)) $(editable); \
	  touch $@; \
	fi

test-oldest: $(OLDEST)/.made
	JAX_ENABLE_X64=0 $(OLDEST)/bin/python -m pytest -n 2 --dist loadgroup
	JAX_ENABLE_X64=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadgroup

$(RELEASE)/.made: requirements/release.txt
	@$(call alone,$(RELEASE)); \
	if $(call old,$@,$^); then \
	  $(call environment,$(RELEASE)); \
	  echo "Installing $< into $(RELEASE) (once, about 0.1 GB)"; \
	  $(call install,$(RELEASE)) --require-hashes --requirement $<; \
	  touch $@; \
	fi

release-check: $(RELEASE)/.made
	$(RELEASE)/bin/python packaging/release_check.py

compile = uv pip compile --quiet --upgrade --universal --python-version 3.11 \
  --generate-hashes --no-header --no-annotate --no-emit-index-url \
  --no-emit-find-links

# study.txt and docs.txt agree with test.txt, because all go into one environment.
pins:
	$(compile) setup.cfg --extra study --extra tables --extra replication \
	  --extra pods --extra test --extra dev --output-file requirements/test.txt
	$(compile) setup.cfg --extra compile --extra test \
	  --constraint requirements/test.txt --output-file requirements/compile.txt
	echo 'setuptools>=77' | $(compile) setup.cfg - --extra study \
	  --constraint requirements/test.txt --output-file requirements/study.txt
	echo 'setuptools>=77' | $(compile) setup.cfg - --extra study --extra docs \
	  --constraint requirements/test.txt --output-file requirements/docs.txt
	$(compile) setup.cfg --extra study --extra tables --extra replication \
	  --extra pods --extra test --resolution lowest-direct \
	  --output-file requirements/oldest.txt
	$(compile) requirements/release.in --output-file requirements/release.txt
