# `make demo` and `make test` first install everything they need in .venv.
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

demo: $(VENV)/.installed  ## run a search on the digits and print its tickets
	$(BIN)/ticket-search run digits --output runs/demo

test: $(VENV)/.installed  ## all tests except cluster tests and long ones, with three workers
	$(BIN)/pytest -n 3 --dist loadfile --durations=30

test-cluster: $(VENV)/.installed  ## cluster tests, whose hosts are network namespaces; needs root
	$(BIN)/pytest -m cluster --durations=0 tests/cluster

soak: $(VENV)/.installed  ## kill searches more than 100 times at random moments; about half an hour
	$(BIN)/pytest -m soak
	$(BIN)/python tests/ballistic.py --kills 100

check: format lint types  ## check format, lint and types, and run the tests
	$(MAKE) test

format: $(VENV)/.installed
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

smoke: $(VENV)/.installed  ## run a very small search, under a minute
	$(BIN)/ticket-search run digits --output "$$(mktemp -d)/smoke" --trials 3 \
		--set training.iterations=40 --set pruning.max_levels=2 --set 'space.rewind_iteration=[0, 20]'

clean:
	rm -rf $(VENV) build runs/demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
