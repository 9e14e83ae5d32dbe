# `make help` explains itself. CI fetches what pip has not got (`.ci/tools`), then calls `make check` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Whole processes are most of a test run; they wait more than they work. tests/conftest.py says who goes first, and that
# installations take turns.
TEST_PROCESSES ?= 5
LONG_TEST_PROCESSES ?= 3

# Databases and installations that live for a moment are kept in memory where there is room: a run writes 13 GB.
TEST_DIR ?= $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 { print "/dev/shm" }')
PYTEST = $(if $(TEST_DIR),TMPDIR=$(TEST_DIR)) $(BIN)/python -m pytest --quiet --numprocesses $(TEST_PROCESSES)

# What `make chaos`, `make outage` and `make backlog` do when nothing else is said.
SEED ?= 1
EVENTS ?= 20000
MINUTES ?= 3
RATE ?= 50
DELIVERIES ?= 100000

.DEFAULT_GOAL := help
.PHONY: help setup demo chaos outage backlog bench bench-growth test test-long check format screens up lock clean

help: ## What can be done here
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | column -t -s "$$(printf '\t')"

setup: $(READY) ## The environment in .venv, from the lock file

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Reservoir needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $(READY)

demo: $(READY) ## A busy day at five simulated venues, checked row by row
	@$(BIN)/python -m console.demo

chaos: $(READY) ## Faults in a seeded schedule, and a count of what they lost: EVENTS= SEED= MINUTES= WITHOUT=
	@$(BIN)/python -m chaos --events $(EVENTS) --seed $(SEED) --minutes $(MINUTES) $(if $(WITHOUT),--without $(WITHOUT))

outage: MINUTES = 5
outage: $(READY) ## Redis away for MINUTES= at RATE= events a second: is all of it applied a minute later?
	@$(BIN)/python -m chaos.outage --minutes $(MINUTES) --rate $(RATE) --seed $(SEED)

backlog: $(READY) ## DELIVERIES= in the inbox before a worker runs: is the end drained as fast as the beginning?
	@$(BIN)/python -m chaos.backlog --deliveries $(DELIVERIES) --seed $(SEED)

bench: $(READY) ## Every contender side by side, with ratios: QUICK=1 ONLY= TURNS= SECONDS= ROUNDS= DELIVERIES=
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(foreach part,$(ONLY),--only $(part)) $(if $(TURNS),--turns $(TURNS)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(filter command,$(firstword $(origin DELIVERIES))),--deliveries $(DELIVERIES))

bench-growth: DELIVERIES = 10000000
bench-growth: $(READY) ## What a long history costs: DELIVERIES= BOOKINGS= ROUNDS=
	@$(BIN)/python -m bench.growth --deliveries $(DELIVERIES) $(if $(BOOKINGS),--bookings $(BOOKINGS)) $(if $(ROUNDS),--rounds $(ROUNDS))

test: $(READY) ## Everything but what takes long: unit, contract, integration against real servers
	@$(PYTEST) -m 'not long'

test-long: TEST_PROCESSES = $(LONG_TEST_PROCESSES)
test-long: $(READY) ## The rest: bad weather, load balancers, long histories, plans, real runs of all parts
	@$(PYTEST) -m long

check: $(READY) ## Format, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet . || { echo 'run `make format`'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(READY) ## Formats and sorts imports
	@$(BIN)/ruff check --quiet --fix --select I .
	@$(BIN)/ruff format --quiet .

screens: $(READY) ## The pictures of the console in docs/screens, taken anew in a real browser
	@$(BIN)/python -m tests.screens

up: $(READY) ## The whole system on this machine, embedded
	@$(BIN)/reservoir up

lock: $(READY) ## Writes requirements.lock anew from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --upgrade --quiet --output-file requirements.lock

clean: ## Removes the environment, caches and the embedded services' data
	rm -rf $(VENV) .reservoir chaos-report.* bench-report.* growth-report.* growth-plans.txt .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
