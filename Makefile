# Needs Python 3.11, git and make. Everything else is installed into .venv, or, for the tests, by apt-get where we are root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
PIP := -m pip --quiet --disable-pip-version-check --no-input
RABBITMQ := /usr/lib/rabbitmq/bin/rabbitmq-server
DEBIAN13 := build/debian13
# What RabbitMQ 4 is tested with: all that talks to it directly. It always has streams.
RABBITMQ4_TESTS := tests/conformance -k "not sqlite" tests/integration/test_amqp_*.py tests/cases/test_refusals.py \
	tests/cases/test_rabbitmq4.py \
	--deselect tests/integration/test_amqp_control.py::test_a_broker_without_streams_does_the_rest
REDIS := /usr/bin/redis-server
POSTGRES := $(wildcard /usr/lib/postgresql/*/bin/initdb)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-rabbitmq4 chaos lint format docs bench rabbitmq redis postgres clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## See it at work: kills everywhere, nothing lost; under a minute, nothing to start
	@$(BIN)/taskq demo

test: $(VENV)/installed-for-tests rabbitmq redis postgres lint ## Lint, then run every test
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-rabbitmq4: $(VENV)/installed-for-tests $(DEBIAN13)/installed ## The tests of RabbitMQ on RabbitMQ 4, from Debian 13 in a folder; needs root
	TEST_RABBITMQ_SYSTEM=$(DEBIAN13) $(BIN)/pytest $(RABBITMQ4_TESTS)

chaos: $(VENV)/installed-for-tests rabbitmq redis ## Break everything at random instants, on both brokers: make chaos SECONDS=120 SEED=1
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),120) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos --plague 3 --workers 2 $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.workflows --whole $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.workflows --broker rabbitmq --backend redis --celery $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.fuzz --broker sqlite --messages 10000 $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.fuzz --broker rabbitmq --messages 10000 $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.schedules --seconds $(or $(SECONDS),120) --kill-every 5

lint: $(VENV)/installed-for-tests ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright tests/typing/accepted.py

format: $(VENV)/installed-for-tests ## Bring the source into its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/installed-for-docs ## Build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/installed-for-tests $(PEERS)/installed rabbitmq ## Compare with Celery, Dramatiq and Huey on this machine
	$(BIN)/python -m tests.benchmarks --peers $(PEERS)/bin/python

clean: ## Remove what make made
	rm -rf $(VENV) $(PEERS) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Without the server the tests that need it fail and say so; the others are worth running all the same.
rabbitmq:
	@[ -x $(RABBITMQ) ] || .ci/debian-package rabbitmq-server || true

redis:
	@[ -x $(REDIS) ] || .ci/debian-package redis-server || true

postgres:
	@[ -n "$(POSTGRES)" ] || .ci/debian-package postgresql || true

$(DEBIAN13)/installed:
	.ci/debian-folder trixie rabbitmq-server $(DEBIAN13)
	@touch $@

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) install --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/python $(PIP) install --group test
	@touch $@

$(VENV)/installed-for-docs: $(VENV)/installed
	$(BIN)/python $(PIP) install --group docs
	@touch $@

$(PEERS)/installed: pyproject.toml | $(PEERS)/bin/python
	$(PEERS)/bin/python $(PIP) install --group peers
	@touch $@

# Debian has the venv module in a package of its own, and its pip is too old to know dependency groups.
%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "taskq needs Python 3.11 or newer; name one: make PYTHON=/path/to/python")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/debian-package python3-venv
	$(PYTHON) -m venv --clear $*
	@$@ $(PIP) install --upgrade 'pip>=25.1' || { rm -rf $*; exit 1; }
