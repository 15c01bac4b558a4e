# `make train` and `make test` are all a fresh machine needs; both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE := 1

.PHONY: train test check bench help clean
help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

train: $(STAMP) ## set up and train: GRPO on the embedded stack with the OCR reward
	$(BIN)/xomni-rl train $(ARGS)

test: $(STAMP) ## set up and run every test, the slow learning test included
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.typecheck

bench: $(STAMP) ## every benchmark, side by side with its peer
	$(BIN)/xomni-rl bench all

clean: ## remove the environment and build products
	rm -rf $(VENV) build dist *.egg-info
