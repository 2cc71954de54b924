# Every command a newcomer needs. Only `make setup` touches the network; `make bench` and the tests once, for a peer and a client.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
# Processes that share the suite, a file each: tests wait more than they compute, so more than there are cores.
TESTERS ?= 3
# The scripts of `make bench`, each for one number; `make bench BENCH=ttft ARGS=--quick` tries one.
BENCH ?= streams ttft readers live_runs long_answers fan_out where
BIN := .venv/bin

.PHONY: run test check bench soak profile setup lock clean

run: .venv/ready  ## serve the built-in agents on http://$(HOST):$(PORT)
	$(BIN)/millrace serve --host $(HOST) --port $(PORT)

test: .venv/ready  ## the whole suite; a missing machine program skips its tests and is named
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile $(ARGS)

check: .venv/ready  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## the README's numbers with the peers beside it, into docs/performance.md: some 25 minutes
	@set -e; for name in $(BENCH); do echo "benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py $(ARGS); done

soak: .venv/ready  ## half an hour of runs that end in every way: does memory grow?
	$(BIN)/python benchmarks/soak.py $(ARGS)

profile: .venv/ready  ## where the time of a token goes; ARGS="--agent live --quick" for instance
	$(BIN)/python benchmarks/where.py $(ARGS)

setup: .venv/ready  ## a virtual environment in .venv with everything pinned by requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Millrace needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing the pinned packages into .venv (a minute or two the first time) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lock: .venv/ready  ## pin anew from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --upgrade --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file requirements.lock
	$(BIN)/uv pip compile benchmarks/peers/langgraph-api.in --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file benchmarks/peers/langgraph-api.lock

clean:  ## remove what the other commands made
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/clients/node_modules
