# What a person types. `make` alone lists the targets.
#   CORES=4      cores for the workflow (all by default)
#   CONFIG=FILE  configuration that is merged over config/config.yaml
#   WORKERS=4    processes that share the tests (2 by default)
#   PYTHON=...   interpreter for the virtual environment (3.11 or newer)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help install install-lint demo run retry unlock test test-slow test-all lint format catalogue clean

CORES ?= all
CONFIG ?=
WORKERS ?= 2
VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
SNAKEMAKE := $(VENV)/bin/snakemake --cores $(CORES)
CODE := src tests scripts benchmarks
BENCHMARKS := $(sort $(subst _,-,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))))

# Jobs and benchmarks find the environment's programs without activating it.
export PATH := $(VENV)/bin:$(PATH)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16
	printf 'bench-NAME      print one benchmark table; NAME is one of:\n'
	printf '                %s\n' $(BENCHMARKS)

install: ## make .venv from requirements.lock, unless it is up to date
	@PYTHON="$(PYTHON)" bash .ci/install "$(VENV)" requirements.lock

install-lint: install
	@if ! cmp -s requirements-lint.lock "$(VENV)/requirements-lint.lock"; then
	    echo "installing the linters"
	    $(PY) -m pip install -q --no-deps -r requirements-lint.lock 2>>"$(VENV)/install.log"
	    cp requirements-lint.lock "$(VENV)/"
	fi

demo: install ## the default benchmark on simulated data: table, figures, report
	@$(SNAKEMAKE) --logger scbraid --no-hooks
	$(PY) -m scbraid.summary

run: install ## the benchmark of CONFIG=config/....yaml
	@$(SNAKEMAKE) --logger scbraid --no-hooks $(if $(CONFIG),--configfile $(CONFIG))
	$(PY) -m scbraid.summary $(CONFIG)

retry: install ## forget runs that failed or hit a limit, then run CONFIG again
	@$(PY) -m scbraid.summary --forget-failed $(CONFIG)
	$(SNAKEMAKE) --logger scbraid --no-hooks $(if $(CONFIG),--configfile $(CONFIG))
	$(PY) -m scbraid.summary $(CONFIG)

unlock: install ## remove Snakemake's lock after a hard kill (when none runs here any more)
	@$(SNAKEMAKE) --unlock $(if $(CONFIG),--configfile $(CONFIG))

test: install ## the tests that take seconds each
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) -m "not slow"

test-slow: install ## the other tests: whole workflows, conda environments, long trainings
	@$(PY) -m pytest -q -m slow

test-all: install ## all tests
	@$(PY) -m pytest -q

lint: install-lint ## ruff, mypy, snakefmt and Snakemake's own linter
	@$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/mypy
	$(VENV)/bin/snakefmt --check Snakefile workflow
	$(VENV)/bin/snakemake --lint

format: install-lint ## rewrite the code in the house format
	@$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format $(CODE)
	$(VENV)/bin/snakefmt Snakefile workflow

catalogue: install ## rewrite the catalogue and schemas that are generated from the code
	@$(PY) -m scbraid.study

bench-%: install
	@$(PY) benchmarks/$(subst -,_,$*).py $(ARGS)

clean: ## remove the results of the default configuration
	@rm -rf results/*/
