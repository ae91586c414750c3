# make demo    an environment, then seven uneven nodes on lossy links that train one model
# make test    everything that is checked: lint, types, pages, tests
# make docs    the pages as a site, in site/: open site/index.html
# make env     the environment alone, in .venv; PYTHON=… says which Python (3.11 or newer) makes it
# make clean   away with all that was made

# The first Python that is new enough; python3 if none is, for the message below.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help env demo test docs lint format clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

env: $(STAMP)

# Made once, and again when what is to be installed changes.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) not found: install Python 3.11 or newer, or say make PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; old = sys.version_info < (3, 11); v = sys.version.split()[0]; \
		sys.exit(f"{sys.executable} is Python {v}: 3.11 or newer is needed; say make PYTHON=..." if old else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make an environment: on Debian, apt-get install python3-venv"; exit 2; }
	@echo "installing into $(VENV): the first time this takes some minutes, most of them for torch"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env
	$(BIN)/rfast run nodes/digits.py --nodes 7 --topology binary-tree --split label --samples 30000 \
		--compute constant:0.07 --straggler 6:5 --drop 0.3 --duplicate 0.1 --reorder 0.1 \
		--baseline --require 0.94 --out runs/demo

# What starts real processes comes last, so that it shares the processors with nothing but itself.
test: lint docs
	$(BIN)/python -m pytest -q -n 2 --ignore=tests/loopback --ignore=tests/cli
	$(BIN)/python -m pytest -q -n 2 tests/cli tests/loopback

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A link that leads nowhere, a page that is in no menu or a docstring that names no argument is an error. (Not with
# --quiet: warnings that are not shown are not counted.)
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist runs site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
