# venv + pip by default; with uv: `uv run faisca run` (see README.md).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint mutations

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $@

# A folder of its own each time, so that no earlier run is overwritten.
demo: install
	$(BIN)/faisca run --preset spark --out runs/demo-$$(date +%Y%m%d-%H%M%S)

# Two workers on two cores; conftest.py gives each one thread. Then the numerical rungs under two other kernels.
test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup
	$(BIN)/python parity_tests/kernels.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every bug of parity_tests/bugs/ in turn, about half an hour: CI applies a few, others for each commit.
mutations: install
	$(BIN)/python parity_tests/mutations.py -j 2
