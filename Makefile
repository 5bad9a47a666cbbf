# Everything happens in .venv, which is made on first use. Long form of each target: CONTRIBUTING.md.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.bitsfusion-installed
NATIVE := $(wildcard src/bitsfusion/kernels/cpu/*.cpp src/bitsfusion/kernels/cpu/*.h)
PYTEST_WORKERS ?= 2
PYTEST_ARGS    ?=

# Several processes of one thread each beat one process of several here, and no test may reach the network.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=agg

.DEFAULT_GOAL := help
.PHONY: help install demo test test-min vendor lint docs page check format bench wheel

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml setup.py constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "bitsfusion needs Python 3.11 or newer, got %d.%d; name another with make PYTHON=..." % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

install: $(STAMP) ## make .venv and install the package with exact pins

demo: install ## the whole method on the embedded model; writes runs/demo/report/index.html
	$(BIN)/bitsfusion demo

test: install ## tests, without those marked slow, gpu, network or browser
	$(TEST_ENV) $(BIN)/python -m pytest -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

test-min: ## the embedded model and the tests of each extra, with the lowest versions allowed; in .venv-min
	$(PYTHON) tools/check_lowest.py

vendor: install ## fetch the page's third-party scripts from npm into .vendor/; the tests that need them then run
	@mkdir -p .vendor
	npm pack --silent --ignore-scripts --pack-destination .vendor $$($(BIN)/python -m bitsfusion.exporting.web.vendor)

lint: install ## lint, format, types, import direction, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory docs

docs: install ## the documentation site, into site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/mkdocs build --quiet

page: install ## site/draw: the embedded model, packed whole, as a page that draws in the browser; calls npm
	rm -rf site/draw site/packed
	$(BIN)/bitsfusion init embedded --bits 1.99 --whole --out site/packed
	$(BIN)/bitsfusion export site/packed --to web --out site/draw
	rm -r site/packed

check: lint test ## lint, then test: what CI runs

format: install ## rewrite the files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: ## build the wheel, install it into an empty environment and run the demo's first steps there
	PYTHON=$(PYTHON) tools/check_wheel.sh

bench: install ## measured speeds of unpacking and of the scale search; benchmarks/ has two more that take data or 12 GB
	@set -e; for name in unpack scale forward; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py; done
