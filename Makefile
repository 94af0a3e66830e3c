# Everything starts here. `make demo` and `make test` set up what they need by themselves:
# a Python 3.11 or later with venv and pip is all a machine must have.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
LOG := $(VENV)/setup.log
# Tests use one thread each and two processes: more threads than cores makes torch many times slower.
TEST_JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS)

CLIENTS := .venv-clients
CLIENTS_FROM := tests/e2e/clients
MODULES := $(CLIENTS_FROM)/node_modules/.package-lock.json

.PHONY: help setup demo test test-quick test-all test-clients lint check format bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv with everything in it; again only when the requirements change

# The hundreds of lines of pip and npm go to a log; a failed step shows the last of them.
logged = > $(1) 2>&1 || { tail -n 8 $(1); echo "$(2) failed; its output is in $(1)"; exit 1; }
INSTALL = $(call logged,$(LOG),setup)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; try: make setup PYTHON=python3.12"; exit 1; }
	@echo "setup 1/3: makes the Python environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup 2/3: installs torch (minutes; $(LOG) shows how far it is)"
	@$(PIP) install -c constraints.txt torch $(INSTALL)
	@echo "setup 3/3: installs blip3o and its tools"
	@$(PIP) install -c constraints.txt -e ".[all]" $(INSTALL)
	@touch $@
	@echo 'setup is done; next: . $(VENV)/bin/activate, then: blip3o generate "a red car"'

demo: setup ## Show the main job: images, a description, an edit, a contact sheet
	$(BIN)/python examples/demo.py

test: setup ## Run the default tests (11 minutes of CPU time)
	$(PYTEST)

test-quick: setup ## Run the unit tests without those of serving and recipes (4 minutes of CPU time)
	$(PYTEST) tests/unit tests/contract --ignore=tests/unit/serve --ignore=tests/unit/recipes

test-all: setup ## Run every test this machine can: slow and compiled ones too
	$(PYTEST) -m "not gpu"

# Without npm the clients for JavaScript are left out, and their tests say that they were skipped.
test-clients: setup $(CLIENTS)/.installed $(if $(shell command -v npm),$(MODULES)) ## Ask a server with the clients that people use (those for JavaScript need npm)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m slow $(CLIENTS_FROM)

$(CLIENTS)/.installed: $(CLIENTS_FROM)/requirements.txt
	@echo "installs the clients for Python in $(CLIENTS)"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check install -r $< $(call logged,$(CLIENTS)/setup.log,pip install)
	@touch $@

$(MODULES): $(CLIENTS_FROM)/package-lock.json
	@echo "installs the clients for JavaScript in $(CLIENTS_FROM)/node_modules"
	@mkdir -p $(CLIENTS)
	@npm ci --prefix $(CLIENTS_FROM) --no-audit --no-fund $(call logged,$(CLIENTS)/npm.log,npm ci)
	@touch $@

lint: setup ## Formatting, lint (docstrings too), types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

check: lint test ## What must pass before a commit

format: setup ## Let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Measure speed on this machine
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/sample.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/chat.py
	$(BIN)/python benchmarks/train_step.py

clean: ## Remove the environment and all caches
	rm -rf $(VENV) $(CLIENTS) $(CLIENTS_FROM)/node_modules build .pytest_cache .ruff_cache .import_linter_cache src/*.egg-info
