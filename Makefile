# All common tasks. `make demo` and `make test` install what they need;
# the machine only needs Python 3.11 or later with venv and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
LOG := $(VENV)/setup.log
# Two processes with one thread each: torch becomes many times slower with more threads than cores.
TEST_JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS)

CLIENTS := .venv-clients
CLIENTS_FROM := tests/e2e/clients
MODULES := $(CLIENTS_FROM)/node_modules/.package-lock.json

.PHONY: help setup demo test test-quick test-all test-clients lint check format bench docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Create .venv with all dependencies; repeated only if the requirements change

# pip and npm write hundreds of lines into a log. If a step fails, its last lines are shown.
logged = > $(1) 2>&1 || { tail -n 8 $(1); echo "$(2) failed; its output is in $(1)"; exit 1; }
INSTALL = $(call logged,$(LOG),setup)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; try: make setup PYTHON=python3.12"; exit 1; }
	@echo "setup 1/3: creating the Python environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup 2/3: installing torch (takes minutes; $(LOG) shows the progress)"
	@$(PIP) install -c constraints.txt torch $(INSTALL)
	@echo "setup 3/3: installing blip3o and its tools"
	@$(PIP) install -c constraints.txt -e ".[all]" $(INSTALL)
	@touch $@
	@echo 'setup is done; next: . $(VENV)/bin/activate, then: blip3o generate "a red car"'

demo: setup ## Generate images, describe one, edit one, and write a contact sheet
	$(BIN)/python examples/demo.py

test: setup ## Run the default tests (10 to 20 minutes on two cores)
	$(PYTEST)

test-quick: setup ## Run the unit tests without serving and recipes (4 minutes on two cores)
	$(PYTEST) tests/unit tests/contract --ignore=tests/unit/serve --ignore=tests/unit/recipes

test-all: setup ## Run all tests except GPU tests, slow and compiled ones included
	$(PYTEST) -m "not gpu"

# Without npm the JavaScript clients are not installed, and their tests are skipped.
test-clients: setup $(CLIENTS)/.installed $(if $(shell command -v npm),$(MODULES)) ## Test a server with six real clients (the JavaScript ones need npm)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m slow $(CLIENTS_FROM)

$(CLIENTS)/.installed: $(CLIENTS_FROM)/requirements.txt
	@echo "installing the Python clients in $(CLIENTS)"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check install -r $< $(call logged,$(CLIENTS)/setup.log,pip install)
	@touch $@

$(MODULES): $(CLIENTS_FROM)/package-lock.json
	@echo "installing the JavaScript clients in $(CLIENTS_FROM)/node_modules"
	@mkdir -p $(CLIENTS)
	@npm ci --prefix $(CLIENTS_FROM) --no-audit --no-fund $(call logged,$(CLIENTS)/npm.log,npm ci)
	@touch $@

lint: setup ## Check formatting, lint, docstrings, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

check: lint test ## Run lint and test; required before a commit

format: setup ## Format and fix the code with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Measure the speed on this machine; overwrites benchmarks/results
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/report.py

docs: $(VENV)/.docs ## Build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	@echo "installing the tools of the site"
	@$(PIP) install -c constraints.txt -e ".[docs]" $(call logged,$(VENV)/docs.log,docs)
	@touch $@

clean: ## Remove the environments, the site and all caches
	rm -rf $(VENV) $(CLIENTS) $(CLIENTS_FROM)/node_modules build site .pytest_cache .ruff_cache .import_linter_cache src/*.egg-info
