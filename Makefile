# Each target makes what it needs. VENV and PYTHON choose where and with what.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DATA ?= ../shared/data
STUDY := $(BIN)/python -m benchmarks.study

export HF_HUB_OFFLINE ?= 1

.PHONY: help install quickstart study-small results test lint format clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED) ## Make an environment with the package and all its extras, pinned

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[examples,test,dev]'
	@touch $@

quickstart: $(INSTALLED) ## Train, index, retrieve and compare, offline, in a few minutes
	$(BIN)/python examples/quickstart.py

study-small: $(INSTALLED) ## Compare losses on two collections, in less than half an hour
	$(STUDY) run benchmarks/study/configs/small.yaml --data $(DATA) --records runs/study-small/records \
		--work runs/study-small
	$(STUDY) report benchmarks/study/configs/small.yaml --records runs/study-small/records --to runs/study-small
	cat runs/study-small/RESULTS.md

results: $(INSTALLED) ## Write benchmarks/RESULTS.md anew from the records of the full study
	$(STUDY) report benchmarks/study/configs/full.yaml --records benchmarks/records --to benchmarks \
		--template benchmarks/RESULTS.md.j2

test: $(INSTALLED) ## Run the tests and the examples in docstrings
	$(BIN)/python -m pytest

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Bring the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and what tests leave behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
