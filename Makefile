# make demo        install into .venv, then run the demonstration
# make test        install, then run all tests
# make lint types docs tutorials    the other checks of CI
#
# The network is used for installing packages and for nothing else.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2

export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs tutorials clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# A stamp per set of packages: nothing is installed again while pyproject.toml and constraints.txt stay as they are.
$(VENV)/.ready-package: pyproject.toml constraints.txt
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install --quiet "pip>=25.1"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-%: $(VENV)/.ready-package
	$(PIP) install --quiet --constraint constraints.txt --group $*
	@touch $@

.PRECIOUS: $(VENV)/.ready-%

demo: $(VENV)/.ready-package
	$(BIN)/spahgc demo

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

docs: $(VENV)/.ready-doc
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# Runs every notebook where it lies, so that its relative paths hold; the executed copies go to a temporary folder.
tutorials: $(VENV)/.ready-notebook
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	for notebook in tutorials/*.ipynb; do \
		echo "== $$notebook"; \
		$(BIN)/jupyter-nbconvert --log-level WARN --to notebook --execute --ExecutePreprocessor.timeout=900 \
			--output-dir "$$out" "$$notebook" || exit 1; \
	done

clean:
	rm -rf build dist docs/_build docs/api/generated docs/accuracy.md docs/speed.md docs/tutorials .coverage htmlcov .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
