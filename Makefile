# One command each; every target makes what it needs. `make help` lists them.
PYTHON ?= python3
# The trainings of the demo and the tests need torch; any build of this version will do.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long check bench reproduce chaos fuzz flood-test kill-test soak real-logs set-ups audit-table guard-study compose-test load-test lock settings format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml client_sdk/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Spikewatch needs Python 3.11 or newer; say which with: make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) -e ./client_sdk -e '.[demo,test,frameworks,check]'
	@touch $@

install: $(STAMP) ## make .venv with everything in it

demo: $(STAMP) ## server, dashboard and three real trainings; DEMO_FLAGS=--exit ends after the summary
	$(BIN)/spikewatch demo $(DEMO_FLAGS)

# Tests start some two hundred interpreters. Where the environment forbids bytecode files, each would compile everything.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist worksteal

test: $(STAMP) chromium ## run all tests but those that take minutes by nature
	$(PYTEST) -m "not long" $(PYTEST_FLAGS)

test-long: $(STAMP) ## run the tests that take minutes by nature: short campaigns, the demo, the tutorial, DeepSpeed
	$(PYTEST) -m long $$(grep -rl 'mark\.long' tests --include='*.py') $(PYTEST_FLAGS)

check: $(STAMP) ## ruff, mypy --strict, the import contracts, the prose of docstrings, alembic check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m checks.prose
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
	  export SPIKEWATCH_DATABASE_URL="sqlite:///$$directory/check.sqlite3" && \
	  $(BIN)/alembic upgrade head && $(BIN)/alembic check

bench: $(STAMP) ## run the benchmarks, each prints its table
	@for file in $$(grep -l __main__ benchmarks/*.py); do \
	  echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

reproduce: $(STAMP) ## what the papers on loss spikes show, reproduced in minutes: a table and a figure each, in benchmarks/results
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reproduce --write $(REPRODUCE_FLAGS)

# docs/explanation/reliability.md describes what these five prove. `make test-long` runs short versions of the first four.
CHAOS_SEED ?= 1
FUZZ_FRAMES ?= 100000
FLOOD_CONNECTIONS ?= 10000
SOAK_MINUTES ?= 30
KILLS ?= 150

chaos: $(STAMP) ## 110 faults against a training, on SQLite and on two servers with Postgres and Redis; CHAOS_SEED=2 for others
	$(BIN)/python -m campaigns.chaos --seed $(CHAOS_SEED) --database sqlite --quiet
	$(BIN)/python -m campaigns.chaos --seed $(CHAOS_SEED) --database postgres --quiet

fuzz: $(STAMP) ## 100,000 mutated frames against the ingest socket
	$(BIN)/python -m campaigns.fuzz --frames $(FUZZ_FRAMES)

flood-test: $(STAMP) ## 10,000 abusive connections with one token alongside a training with another
	$(BIN)/python -m campaigns.flood --connections $(FLOOD_CONNECTIONS)

kill-test: $(STAMP) ## 300 compactions killed at random statements, on SQLite and on Postgres; KILLS=50 for 50 on each
	$(BIN)/python -m campaigns.kill --kills $(KILLS)

soak: $(STAMP) ## memory of trainer and server over SOAK_MINUTES=30 at 50 steps a second
	$(BIN)/python -m campaigns.soak --minutes $(SOAK_MINUTES)

real-logs: $(STAMP) ## what is said about real training logs, held against labels; REAL_LOGS=FOLDER, REAL_LOGS_FLAGS=--details
	OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.real_logs $(REAL_LOGS) $(REAL_LOGS_FLAGS)

set-ups: $(STAMP) ## the table of optimizers, precisions, loops, distributions and frameworks, each run bare and watched; SET_UPS_FLAGS='--only FSDP'
	OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.set_ups --page docs/reference/set-ups.md $(SET_UPS_FLAGS)

guard-study: $(STAMP) ## trainings of the same seed without and with the guard, beside fixed remedies; GUARD_STUDY_FLAGS='--seeds 3'
	OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.guard_study $(GUARD_STUDY_FLAGS)

audit-table: $(STAMP) ## the faults of the audit put into trainings: how soon each is named, and what is found at healthy set-ups
	OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.audit --write $(AUDIT_FLAGS)

compose-test: $(STAMP) chromium ## the stack of docker-compose.yml against kill -9, restarts and outages, during a training
	OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.compose $(COMPOSE_TEST_FLAGS)

load-test: $(STAMP) ## 200 runs × 1 step/s × 100 layers × 12 statistics for a minute; LOAD_FLAGS='--target compose' for the stack
	OMP_NUM_THREADS=1 $(BIN)/python -m campaigns.load $(LOAD_FLAGS)

# The exact versions, with their hashes, that the container image is built from; a test holds them against pyproject.toml.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --no-header --python-version 3.13 --python-platform linux --generate-hashes

lock: $(STAMP) ## renew the lock files of the container image
	$(LOCK) --no-emit-package spikewatch-client -o deploy/requirements.lock pyproject.toml
	echo 'hatchling>=1.30' | $(LOCK) -o deploy/build.lock -

settings: $(STAMP) ## renew docs/reference/settings.md
	$(BIN)/python deploy/settings_page.py >docs/reference/settings.md

format: $(STAMP) ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The browser tests use the system's Chromium. Root on Debian gets it installed; elsewhere they are skipped, loudly.
.PHONY: chromium
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	    command -v $$name >/dev/null 2>&1 && exit 0; done; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "installing chromium for the browser tests"; apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	  else echo "NO CHROMIUM: the browser tests will be skipped; install chromium to run them"; fi

clean: ## remove the virtual environments and caches
	rm -rf $(VENV) .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
