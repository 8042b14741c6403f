# Each target makes what it needs. VENV and PYTHON choose where and with what.

VENV ?= .venv
WHEEL_VENV ?= .wheel-venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DATA ?= ../shared/data
FUZZ_EXAMPLES ?= 2000
FUZZ_SEED := $(or $(FUZZ_SEED),$(shell date +%s))
STUDY := $(BIN)/python -m benchmarks.study

export HF_HUB_OFFLINE ?= 1

# tests and their processes share the cores, and the models of tests are too small for two
test coverage fuzz: export OMP_NUM_THREADS ?= 1

.PHONY: help install quickstart notebooks study-small results speed test coverage check-notebooks versions journeys \
	fuzz chaos docs smoke lint format clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

install: $(INSTALLED) ## Make an environment with the package and all its extras, pinned

$(INSTALLED): EXTRAS = examples,test,docs,dev
# without Ray, OpenVINO and Sphinx
$(VENV)/with-examples: EXTRAS = examples
$(INSTALLED) $(VENV)/with-examples: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

quickstart: $(VENV)/with-examples ## Train, index, retrieve and compare, offline, in three to five minutes
	$(BIN)/python examples/quickstart.py

notebooks: $(INSTALLED) ## Run the notebooks in examples/, and store their outputs, which the documentation shows
	PYTHONWARNINGS=ignore $(BIN)/python docs/run_notebooks.py examples/quickstart.ipynb examples/tutorial.ipynb

study-small: $(INSTALLED) ## Compare losses on four collections, in a quarter of an hour
	$(STUDY) run benchmarks/configs/small.yaml --data $(DATA) --records runs/study-small/records \
		--work runs/study-small
	$(STUDY) report benchmarks/configs/small.yaml --records runs/study-small/records --to runs/study-small
	cat runs/study-small/RESULTS.md

results: $(INSTALLED) ## Write benchmarks/RESULTS.md from the records of the full study
	$(STUDY) report benchmarks/configs/full.yaml --records benchmarks/records --to benchmarks \
		--template benchmarks/RESULTS.md.j2

# xdist 3.8 waits for ever where it has replaced a process that crashed
TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test: $(INSTALLED) ## Run the tests and the examples in docstrings, in five minutes on two cores
	$(TESTS) --durations 20

coverage: $(INSTALLED) ## Run the same tests, and fail if they cover too little
	$(TESTS) --cov

check-notebooks: $(INSTALLED) ## Run the notebooks in examples/ on a small collection, and store nothing
	$(BIN)/python -m pytest -m notebooks tests/test_notebook.py

versions: ## Compile the code and resolve the pins with each promised version of Python
	.ci/versions

journeys: $(INSTALLED) ## Count the functions that indexing and training cross, and the lines of the package
	$(BIN)/python -W ignore -m benchmarks.journeys

fuzz: $(INSTALLED) ## Give malformed input to all entry points, and write the outcomes to benchmarks/RELIABILITY.md
	FUZZ_PAGE=1 FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest tests/robustness -s

chaos: $(INSTALLED) ## Kill runs, fill disks, run competing processes, search for an hour, and write the outcomes to that page
	$(BIN)/python -m benchmarks.chaos

speed: $(INSTALLED) ## Compare the speed with other libraries, and write benchmarks/SPEED.md and tables that depend on it
	$(BIN)/python -m benchmarks.throughput --data $(DATA)
	$(BIN)/python -m benchmarks.large_collections --write

docs: $(INSTALLED) ## Build the documentation as a site in docs/_build/html, and check its links
	rm -rf docs/_build
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

smoke: $(INSTALLED) ## Build the wheel, install it without extras elsewhere, and try it there
	rm -rf build dist $(WHEEL_VENV)
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(WHEEL_VENV)/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd $(WHEEL_VENV) && bin/python -W ignore $(CURDIR)/.ci/smoke.py $(CURDIR)

lint: $(INSTALLED) ## Check style, types, docstrings and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) $(WHEEL_VENV) build dist docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
