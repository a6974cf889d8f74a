# The whole project by a handful of words. `make` alone lists them.
#
# Python packages come from pyproject.toml alone, into ./.venv; they are installed again only when
# what pyproject.toml asks for has changed, so every target works offline after its first run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
NODES ?= 3
HTTP_PORT ?= 8500
PEER_PORT ?= 8300
PYTEST_ARGS ?=

.PHONY: help up down status logs check test bench format docs install install-dev system-packages tools

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

install: ## make .venv with what kvnode needs
	@$(PYTHON) scripts/install.py $(VENV)

install-dev: ## the same with what the tests need
	@$(PYTHON) scripts/install.py $(VENV) dev

system-packages: ## programs that some tests and benchmarks use (root: installs them)
	@sh scripts/system-packages.sh

tools: install-dev ## what some tests run: helm, kubectl, promtool, Consul and its clients; into .cache
	@$(BIN)/python scripts/fetch_tools.py
	@$(BIN)/python scripts/fetch_clients.py

up: install ## start NODES=3 nodes in the background on DATA=data, wait for a leader
	@$(BIN)/kvnode dev --detach --nodes $(NODES) --data-dir $(DATA) --http-port $(HTTP_PORT) --peer-port $(PEER_PORT)
	@echo '`make status`, `make logs`, `make down`' >&2

down: ## stop what `make up` started; the data stay
	@if [ -x $(BIN)/kvnode ]; then $(BIN)/kvnode dev stop --data-dir $(DATA); else echo "nothing was started"; fi

status: install ## who leads, who follows
	@$(BIN)/kvnode dev status --data-dir $(DATA)

logs: ## follow the logs of what `make up` started
	@tail -n 20 -F $(DATA)/*.log

check: install-dev ## lint, types, import rules and the quick tests: under two minutes
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -q -n auto $(PYTEST_ARGS)

.PHONY: lint
lint: install-dev ## lint, format, types and import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install-dev system-packages tools ## everything: checks, then all tests with real processes and faults
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -q -n auto $(PYTEST_ARGS)
	@# Most of these wait for real processes; a file stays together. The simulator takes all cores by itself.
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "(slow or chaos) and not simulation" --durations 20 $(PYTEST_ARGS)
	$(BIN)/pytest -v -m simulation $(PYTEST_ARGS)

SOAK_MINUTES ?= 60
.PHONY: soak
soak: install-dev ## fresh seeds of the simulator on all cores for SOAK_MINUTES=60, to the first failure
	$(BIN)/python -m tests.simulation.soak --minutes $(SOAK_MINUTES)

.PHONY: test-kubernetes
test-kubernetes: install-dev system-packages tools ## the chart on a real Kubernetes 1.20, built once from the distribution's source (root)
	@sh scripts/build_kubernetes.sh
	KVNODE_TEST_KUBERNETES=1 $(BIN)/pytest -v -m "" tests/k8s/test_real_cluster.py $(PYTEST_ARGS)

bench: install-dev system-packages ## the benchmarks
	$(BIN)/python benchmarks/run.py

format: install-dev ## put the source in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: install-dev ## write docs/configuration.md and the chart's README again
	$(BIN)/python -m kvnode.config.documentation > docs/configuration.md
	$(BIN)/python scripts/chart_docs.py
