# Everything goes through .venv, which infra/bootstrap.sh makes from the locks and renews when a lock changes.

SHELL := /bin/bash
PYTHON := .venv/bin/python
COMPILE := .venv/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header $(UPGRADE)
TOOLS := fio iperf3 sysbench stress-ng numactl
FLEET := $(TOOLS) ceph postgres redis sshd nginx ip
.DEFAULT_GOAL := help
.PHONY: help demo up down test test-fast fleet-test check bench fuzz docs sbom audit lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

demo: ## run the quick suite on this machine through Airflow and print what it measured
	@infra/bootstrap.sh control fio
	@.venv/bin/fleetmark demo

up: ## start Airflow on this machine and leave it running
	@infra/bootstrap.sh control fio
	@.venv/bin/fleetmark up

down: ## stop it
	@infra/bootstrap.sh control
	@.venv/bin/fleetmark down

test: ## run every test, with real servers, a browser and a whole Airflow
	@infra/bootstrap.sh dev chromium llama kubectl shellcheck cc $(FLEET)
	@$(PYTHON) -m pytest -n 3 --dist loadscope --no-loadscope-reorder

test-fast: ## run the tests that need no server
	@infra/bootstrap.sh dev $(TOOLS)
	@$(PYTHON) -m pytest -m "not integration" -n auto

fleet-test: ## run the tests of a fleet: four nodes in network namespaces, and everything that may befall them
	@infra/bootstrap.sh dev $(FLEET)
	@$(PYTHON) -m pytest -v tests/fleet

check: ## check format, lint, types and who may import what
	@infra/bootstrap.sh dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check --output-format concise .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: ## measure fleetmark itself and print a table; takes many minutes
	@infra/bootstrap.sh dev fio postgres
	@$(PYTHON) -m perf

fuzz: ## look for an hour for inputs that break a reader
	@infra/bootstrap.sh dev
	@$(PYTHON) -m tests.fuzz 3600

docs: ## write docs/benchmarks.md from the benchmarks' descriptors
	@infra/bootstrap.sh dev
	@$(PYTHON) -m pipelines.guide > docs/benchmarks.md

sbom: ## write sbom.json, every package of a fleet as CycloneDX
	@infra/bootstrap.sh dev
	.venv/bin/uvx --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements/fleet.lock --pyproject pyproject.toml --output-reproducible -o sbom.json

audit: ## ask who knows about vulnerabilities of the locked packages; fails where nobody answers, too
	@infra/bootstrap.sh dev
	@$(PYTHON) -m tests.audit

lock: ## resolve the locks from pyproject.toml; UPGRADE=--upgrade takes what is new
	@infra/bootstrap.sh dev
	$(COMPILE) -o requirements/node.lock
	$(COMPILE) --extra airflow --extra validate -c requirements/node.lock -o requirements/control.lock
	$(COMPILE) --extra worker -c requirements/control.lock -o requirements/worker.lock
	$(COMPILE) --extra fleet --extra validate -c requirements/control.lock -o requirements/fleet.lock
	$(COMPILE) --extra fleet --extra validate --extra dev -c requirements/fleet.lock -o requirements/dev.lock

clean: ## remove the environment, caches and the state of the embedded Airflow, results included
	@if [ -x .venv/bin/fleetmark ]; then .venv/bin/fleetmark down; fi
	rm -rf .venv .venv.lock .fleetmark .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
