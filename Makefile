# Two commands matter: `make book` and `make test`. `make help` lists the others.
# Needed: Python 3.11 or later with its venv module, make, and a network for the first set-up.

PYTHON ?= python3
# The parameters the book's notebooks run with: published (the results in data/results, and what takes
# seconds), ci (small, live), laptop, or paper (a GPU).
TIER ?= published

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT := build/$(TIER)
STAGE := $(OUT)/book
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
EXECUTED := $(NOTEBOOKS:%=$(OUT)/%)
PARAMETERS := $(NOTEBOOKS:notebooks/%.ipynb=notebooks/params/$(TIER)/%.yaml)
SOURCES := $(wildcard relufair/*.py relufair/*/*.py data/results/*.*) \
           data/claims.yaml data/verdicts.csv

.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
.DEFAULT_GOAL := help
.PHONY: help setup book test lint bench claims lab lock clean distclean

help: ## List these commands.
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo "Variables: TIER=published|ci|laptop|paper (for book), PYTHON=python3 (for the set-up)."

setup: $(READY) ## Make .venv from requirements.lock (the other commands do it when needed).

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "relufair needs Python 3.11 or later, and \`$(PYTHON)\` is not that." >&2; \
	    echo "Name another one, for example: make PYTHON=python3.12 setup" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "\`$(PYTHON)\` lacks its venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) with the pinned packages: several minutes and about 6 GB the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "$(VENV) is ready."

book: $(PARAMETERS) $(READY) $(EXECUTED) ## Execute the notebooks and build the book into _build/html.
	@echo "Gathering the pages in $(STAGE)."
	@rm -rf $(STAGE)/book $(STAGE)/notebooks $(STAGE)/data
	@mkdir -p $(STAGE)/notebooks $(STAGE)/data
	@cp -Rp _config.yml _toc.yml $(wildcard *.md) CITATION.cff book _static $(STAGE)/
	@cp -p $(EXECUTED) $(STAGE)/notebooks/
	@for page in data/*.md; do [ ! -f "$$page" ] || cp -p "$$page" $(STAGE)/data/; done
	@# A build that failed or was stopped has read pages whose warnings a second build would not repeat.
	@[ -f $(STAGE)/.whole ] || rm -rf $(STAGE)/_build
	@rm -f $(STAGE)/.whole
	@echo "Building the book; a warning is an error."
	$(BIN)/jupyter-book build -W -n --keep-going $(STAGE)
	@touch $(STAGE)/.whole
	@rm -rf _build && mkdir _build && cp -Rp $(STAGE)/_build/html _build/html
	@echo "The book ($(TIER) parameters) is in _build/html/index.html."

$(EXECUTED): $(OUT)/notebooks/%.ipynb: notebooks/%.ipynb notebooks/params/$(TIER)/%.yaml $(SOURCES) $(READY)
	@echo "Executing notebooks/$*.ipynb with the $(TIER) parameters."
	@mkdir -p $(@D)
	@$(BIN)/relufair run $* --tier $(TIER) --out $(OUT)/runs/$*
	@cp $(OUT)/runs/$*/$*.ipynb $@

# Reached only where the file is not there.
notebooks/params/%.yaml:
	@echo "$@ is missing: every notebook needs its parameters for TIER=$(TIER) there" >&2
	@echo "(tiers found: $(notdir $(wildcard notebooks/params/*)))." >&2; exit 1

test: $(READY) ## Run the tests, then every notebook against its committed outputs.
	@echo "Running the tests and the examples in the docstrings."
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --doctest-modules relufair tests
	@echo "Running the notebooks from an empty store and comparing their outputs (nbval)."
	@rm -rf build/nbval && mkdir -p build/nbval
	RELUFAIR_STORE="$(CURDIR)/build/nbval/store" OMP_NUM_THREADS=1 \
	    $(BIN)/pytest -n 2 --dist loadfile --nbval --nbval-current-env $(NOTEBOOKS)
	@echo "All tests passed."

lint: $(READY) ## Check style and formatting with ruff; change nothing.
	@echo "Checking style and formatting."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY) ## Measure the speed of training, search, measures and import.
	@echo "Running the benchmarks; leave the machine alone meanwhile."
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/geometry.py

claims: $(READY) ## Compute anew what the pages show of data/results: verdicts, tables, figures.
	$(BIN)/python -c "from relufair.scoreboard import save; save()"

lab: $(READY) ## Open the notebooks in JupyterLab.
	@echo "Starting JupyterLab; stop it with Ctrl-C."
	RELUFAIR_PROGRESS=stderr $(BIN)/jupyter lab notebooks

lock: ## Pin the packages of pyproject.toml anew (UPGRADE=--upgrade takes newer versions).
	@echo "Writing requirements.lock with uv, in an environment of its own."
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --disable-pip-version-check --quiet uv
	@UV_CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/uv pip compile pyproject.toml \
	    --all-extras --universal --python-version 3.11 --generate-hashes --quiet $(UPGRADE) -o requirements.lock
	@if grep -n "://" requirements.lock; then \
	    echo "requirements.lock names a host; it must not." >&2; exit 1; fi
	@echo "requirements.lock is written; the next make command installs it."

clean: ## Remove what the commands built.
	@rm -rf build _build .pytest_cache .ruff_cache .hypothesis
	@echo "Removed build/, _build/ and the caches. Left: .venv/, store/ (the computed results) and runs/."

distclean: clean ## Remove .venv as well.
	@rm -rf $(VENV) relufair.egg-info
	@echo "Removed .venv/."
