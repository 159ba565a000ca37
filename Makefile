# Everything a user or contributor runs. `make help` lists the targets.
# Only python3 (with its venv module) is needed beforehand: all else goes into .venv, and nothing outside this folder is touched.
# `make VENV=path ...` takes an environment that is there: nothing is installed in it, and the package is the one of this folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
META := settings.ini setup.py pyproject.toml
export VIRTUAL_ENV := $(abspath $(VENV))
say = @printf '\n\033[1m== %s %s\033[0m\n' "$$(date +%H:%M)"

# Data sets for the longer tests and benchmarks: taken from a folder beside the checkout when there is one.
ifeq ($(FASTERPRUNE_DATA),)
ifneq ($(wildcard ../shared/data),)
export FASTERPRUNE_DATA := $(abspath ../shared/data)
endif
endif
# What notebooks download, made from those data: fastai and the hub's client find it, and ask no network.
offline = eval "$$($(BIN)/python docs/offline.py)";

# An environment of this folder is kept up to date by the targets that test; those that only run tools take it as it is.
ifeq ($(shell test "$(VENV)" = .venv && test ! -L .venv && echo own),own)
installed := .venv/.installed
installed_dev := .venv/.installed-dev
$(BIN)/chkstyle:
	@$(MAKE) --no-print-directory install-dev
else
installed_dev := $(BIN)/chkstyle
PIP := :
export PYTHONPATH := $(CURDIR):$(CURDIR)/tests:$(PYTHONPATH)
$(BIN)/chkstyle:
	@echo 'there are no tools in $(VENV): give another environment, or remove the link .venv and let make install one'; exit 1
endif
tools := $(BIN)/chkstyle

.PHONY: help install install-dev demo export outputs clean-nbs readme docs lint check test test-long test-soak coverage bench build clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(installed)  ## make .venv and install the package in it (about 6 GB, most of it torch)

install-dev: $(installed_dev)  ## the same with all that is needed to test, document and build

demo: install  ## the main job on real data in under a minute; writes demo/report.html
	$(BIN)/fasterprune-demo

export: $(tools)  ## write fasterprune/*.py from the notebooks
	$(BIN)/nbdev-export

outputs: $(tools)  ## run the notebooks and save their outputs, tidied; NB=condense/15_condenser for one of them, NB=--all for those of unchanged cells, too
	$(offline) $(BIN)/python docs/outputs.py $(NB)

clean-nbs: $(tools)  ## strip from the notebooks what should not be committed
	$(BIN)/nbdev-clean

readme: $(tools)  ## write README.md from nbs/index.ipynb
	$(BIN)/python docs/readme.py

docs: $(tools)  ## build the site in docs/_build/html
	$(BIN)/python docs/build.py

lint: $(tools)  ## style, floors and types of what the notebooks export
	$(say) 'style: chkstyle and ruff'
	$(BIN)/chkstyle
	$(BIN)/ruff check
	$(say) 'floors: imports go only downwards'
	$(BIN)/lint-imports
	$(say) 'types: the public names as they are used'
	$(BIN)/pyright --pythonpath $(BIN)/python

check: $(tools)  ## of one notebook, NB=inputs/05_callback: export, style, its test, those of its package (K=series: some of them)
	@test -f 'nbs/$(NB).ipynb' || { echo 'which notebook? make check NB=inputs/05_callback'; exit 1; }
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/chkstyle
	$(BIN)/ruff check
	$(offline) OMP_NUM_THREADS=1 $(BIN)/nbdev-test nbs/$(NB).ipynb
	$(BIN)/python -m pytest -q tests/test_house.py
	for d in $(wildcard tests/$(firstword $(subst /, ,$(NB)))); do $(BIN)/python -m pytest -q -x -n 2 $$d $(if $(K),-k '$(K)') || exit 1; done

test: install-dev  ## every check in half an hour: notebooks, export, style, floors, types, README, site, package, tests
	$(say) 'repository: notebooks clean, export and README in sync, package builds'
	$(BIN)/python -m pytest -q tests/test_repo.py tests/test_house.py
	@$(MAKE) --no-print-directory lint
	$(say) 'notebooks: nbdev-test'
	$(offline) OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --timing --skip-folder-re '^(tutorials|howto|[_.].*)$$'
	$(say) 'docs: the site builds without a warning, all that is public is documented, and a browser shows it right'
	$(BIN)/python docs/build.py
	$(BIN)/python docs/complete.py
	-$(BIN)/python docs/browser.py
	$(BIN)/python docs/check_site.py
	$(say) 'tests: pytest'
	$(BIN)/python -m pytest -q -n 2 --durations 10 --ignore tests/test_repo.py --ignore tests/test_house.py tests

test-long: install-dev  ## tutorials, how-tos, and a part of the matrices: architectures, grids of options (twenty minutes)
	$(say) 'tutorials and how-tos: nbdev-test'
	@$(offline) for d in tutorials howto; do OMP_NUM_THREADS=1 $(BIN)/nbdev-test nbs/$$d --n-workers 2 --timing || exit 1; done
	$(say) 'tests that take long: pytest'
	$(BIN)/python -m pytest -q -n 2 --long -m long --durations 20 tests

test-soak: install-dev  ## before a release: whole matrices, 20,000 random networks, mutated files, killed saves; writes results/condense_fuzz.csv and reliability.csv (hours)
	$(say) 'hundreds of architectures, whole grids of options: pytest'
	$(BIN)/python -m pytest -q -n 2 --soak -m soak --durations 20 tests
	$(say) 'random networks'
	$(BIN)/python tests/condense/test_fuzz.py 20000 $$(date +%j)
	$(say) 'files of strangers, killed saves, full disks'
	PYTHONPATH=tests:$$PYTHONPATH $(BIN)/python tests/reliability/test_mutated_files.py 5000 2000 500 200 500
	PYTHONPATH=tests:$$PYTHONPATH $(BIN)/python tests/reliability/test_saves.py 300 20
	$(say) 'two processes that train one network'
	PYTHONPATH=tests:$$PYTHONPATH $(BIN)/python tests/reliability/test_ranks.py
	$(say) 'beside other callbacks and optimizers, on any number of threads'
	PYTHONPATH=tests:$$PYTHONPATH $(BIN)/python tests/reliability/test_beside.py
	PYTHONPATH=tests:$$PYTHONPATH $(BIN)/python tests/reliability/test_determinism.py
	$(say) 'killed fits that go on'
	PYTHONPATH=tests:$$PYTHONPATH $(BIN)/python tests/reliability/test_resume.py 25

coverage: install-dev  ## which lines the tests of `make test` run; a report, no threshold
	$(BIN)/python -m pytest -q -n 2 --cov --cov-report term:skip-covered --ignore tests/test_repo.py tests

bench: install-dev  ## run the benchmarks, each in a few minutes
	$(say) 'benchmarks: installing what they compare with'
	@$(PIP) -e '.[bench]'
	@for f in $(sort $(wildcard benchmarks/*.py)); do echo "$$f"; $(BIN)/python $$f --quick || exit 1; done

build: install-dev  ## sdist and wheel in dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean:  ## remove all that the targets above made, except .venv
	rm -rf build dist *.egg-info docs/_build docs/_proc demo .pytest_cache .hypothesis .ruff_cache .import_linter_cache .coverage
	find fasterprune nbs tests docs benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

.venv/bin/python:
	$(say) 'Making .venv'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info<(3,10) and "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv

.venv/.installed: $(META) | .venv/bin/python
	$(say) 'Installing fasterprune in .venv (the first time this takes some minutes: torch is large)'
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: $(META) .venv/.installed
	$(say) 'Installing the development tools in .venv'
	@$(PIP) -e '.[dev,packages,distributed]'
	@touch $@
