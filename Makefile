# venv + pip by default; with uv: `uv run faisca run` (see README.md).
# PYTHON=/path/to/python names an interpreter; without it tools/make_venv.sh looks for one.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test browser lint docs mutations

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@tools/make_venv.sh "$(VENV)" "$(PYTHON)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $@

# runs/demo, or the first of runs/demo-2, runs/demo-3, … that is free: no earlier run is overwritten.
demo: install
	@n=1; out=runs/demo; while [ -e $$out ]; do n=$$((n + 1)); out=runs/demo-$$n; done; \
	set -x; $(BIN)/faisca run --preset spark --out $$out

# Two workers on two cores; conftest.py gives each one thread. Then the numerical rungs under two other kernels.
test: install lint browser
	$(BIN)/python -m pytest -n 2 --dist loadgroup
	$(BIN)/python parity_tests/kernels.py

# A Chromium and axe-core for the tests of `faisca report`, where the system lets us install them.
browser: install
	@tools/browser.sh "$(VENV)"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

# The site, in build/site/html: the twins face to face, the documents, the API. tests/test_site.py builds it, too.
docs: install
	$(BIN)/python tools/site/build_site.py $(if $(REPOSITORY),--repository $(REPOSITORY))

# Every bug of parity_tests/bugs/ in turn, about half an hour: CI applies a few, others for each commit.
mutations: install
	$(BIN)/python parity_tests/mutations.py -j 2
