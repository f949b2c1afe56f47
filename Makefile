# BehaviorGuard: everything a user or a contributor runs. Needs Python 3.11+, a C compiler and git; no root, no Docker.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
WEB     := clients/web
STAMPS  := $(VENV)/.stamps
PYTEST_WORKERS ?= 2

.PHONY: up down status test lint format generate bench chaos web lock clean help
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(STAMPS)/runtime $(STAMPS)/web ## Install, start everything in the background, return when it is healthy
	@$(BIN)/behaviorguard up

down: $(STAMPS)/runtime ## Stop everything; data stays
	@$(BIN)/behaviorguard down

status: $(STAMPS)/runtime ## Say what runs and how it is
	@$(BIN)/behaviorguard status

test: $(STAMPS)/dev $(STAMPS)/web ## Run the tests
	$(BIN)/npm --prefix $(WEB) run --silent test
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadgroup

lint: $(STAMPS)/dev $(STAMPS)/web ## Format, style, types, import rules, contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m infra.contracts.lint
	$(BIN)/python -m infra.contracts.generate --check
	$(BIN)/npm --prefix $(WEB) run --silent check

format: $(STAMPS)/dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(STAMPS)/dev ## Write generated/ and the contract reference from protos/
	$(BIN)/python -m infra.contracts.generate

bench: $(STAMPS)/dev $(STAMPS)/web ## Measure speed, as ratios within one run
	$(BIN)/behaviorguard bench all

chaos: $(STAMPS)/dev ## The slow proofs: kill services under load, lose the broker
	$(BIN)/pytest -m chaos -o addopts="--strict-markers --import-mode=importlib"

web: $(STAMPS)/web ## Build the browser pages

lock: ## Resolve the dependencies anew, with hashes
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q uv
	build/lock/bin/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url \
	  --python-version 3.11 --custom-compile-command "make lock" -q -o requirements/dev.txt
	build/lock/bin/uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url \
	  --python-version 3.11 --custom-compile-command "make lock" -q -c requirements/dev.txt -o requirements/runtime.txt
	build/lock/bin/uv pip compile pyproject.toml --extra train --universal --generate-hashes --no-emit-index-url \
	  --python-version 3.11 --custom-compile-command "make lock" -q -c requirements/dev.txt -o requirements/train.txt

clean: ## Remove what was built (not the data)
	rm -rf build $(WEB)/dist $(WEB)/node_modules .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "BehaviorGuard needs Python 3.11 or newer: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/runtime: requirements/runtime.txt pyproject.toml | $(BIN)/python
	@mkdir -p $(STAMPS)
	@echo "Installing the runtime ..."
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(STAMPS)/dev: requirements/dev.txt $(STAMPS)/runtime | $(BIN)/python
	@echo "Installing the development tools ..."
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(STAMPS)/web: $(STAMPS)/runtime $(WEB)/package-lock.json $(shell find $(WEB) \( -name node_modules -o -name dist -o -name __pycache__ \) -prune -o -type f -print 2>/dev/null)
	@echo "Building the pages ..."
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm --prefix $(WEB) ci --silent
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm --prefix $(WEB) run --silent build
	@touch $@
