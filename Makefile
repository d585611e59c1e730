# `make demo` and `make test` set up everything they need in .venv and do the rest.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test test-cluster soak check format lint types smoke clean

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: $(VENV)/.installed  ## the main job on the digits: a search, its tickets
	$(BIN)/ticket-search run digits --output runs/demo

test: $(VENV)/.installed  ## all tests but those of clusters and the long ones, by three workers
	$(BIN)/pytest -n 3 --dist loadfile --durations=30

test-cluster: $(VENV)/.installed  ## clusters on hosts made of network namespaces; needs root
	$(BIN)/pytest -m cluster --durations=0 tests/cluster

soak: $(VENV)/.installed  ## kill searches more than 100 times at random moments; about half an hour
	$(BIN)/pytest -m soak
	$(BIN)/python tests/ballistic.py --kills 100

check: format lint types  ## format, lint, types, tests
	$(MAKE) test

format: $(VENV)/.installed
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

smoke: $(VENV)/.installed  ## a very small search, under a minute
	$(BIN)/ticket-search run digits --output "$$(mktemp -d)/smoke" --trials 3 \
		--set training.iterations=40 --set pruning.max_levels=2 --set 'space.rewind_iteration=[0, 20]'

clean:
	rm -rf $(VENV) build runs/demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
