# `make run` and `make test` are all that most people need; each first does what `make setup` does, if it is not done.
# ARGS goes to the command below: make run ARGS="--set model.bits=18", make test ARGS="tests/schemas -x".

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup java run demo test campaign check lock proto clean

help:  ## This list
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- setup: each step has a stamp, so that what is done is not done again ------------------------------------------

# With a Kafka of the user's own (FRESHET_KAFKA=host:port) neither Java nor Kafka's jars are needed.
KAFKA := $(if $(FRESHET_KAFKA),,java var/kafka/.fetched)

setup: $(VENV)/.project $(KAFKA)  ## Virtual environment, packages, Kafka's jars

$(BIN)/python:
	@ops/setup.sh venv

$(VENV)/.packages: requirements.lock | $(BIN)/python
	@ops/setup.sh packages
	@touch $@

$(VENV)/.project: pyproject.toml $(VENV)/.packages
	@ops/setup.sh project
	@touch $@

java:
	@ops/setup.sh java

var/kafka/.fetched: ops/broker/pom.xml | java
	@ops/setup.sh jars
	@touch $@

# --- use ------------------------------------------------------------------------------------------------------------

run: setup  ## Everything on this machine until Ctrl-C
	@exec $(BIN)/freshet run $(ARGS)

demo: setup  ## The same, bounded, with a report
	@exec $(BIN)/freshet demo $(ARGS)

# Two processes, each with a Kafka: most of the time is waiting. Whole files, the long ones (integration) first. If one of the
# two dies the run ends: a new one would be given the same file again, and again.
test: setup  ## All tests, with a real Kafka
	@exec $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

campaign: setup  ## A hundred SIGKILLs under load: is everything learnt once? (12 minutes; ARGS="--kills 10 --seed 2")
	@exec $(BIN)/python -m tests.integration.campaign $(ARGS)

check: $(VENV)/.project  ## Lint and types
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# --- upkeep -----------------------------------------------------------------------------------------------------------

lock: | $(VENV)/.project  ## Pin the packages anew, as pyproject.toml asks (ARGS=--upgrade: the newest)
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-options \
		--extra dev --output-file requirements.lock $(ARGS) pyproject.toml

proto: $(VENV)/.project  ## Generate schemas/proto/*_pb2*.py from the .proto files
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. schemas/proto/*.proto
	@$(BIN)/python -m grpc_tools.protoc -I. --grpc_python_out=. schemas/proto/scoring.proto

clean:  ## Remove what setup made and all caches; data under var/ stays
	rm -rf $(VENV) build *.egg-info var/kafka var/setup.log .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
