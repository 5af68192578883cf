# Two commands matter: `make run` and `make test`. Both install what they need into .venv.
.DEFAULT_GOAL := help
.PHONY: help run test lint unit e2e test-cluster up down images screenshots lock clean
SHELL := bash

RECIPE ?= quickstart
KEEP ?= 1

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: ## Distil, evaluate, gate and promote through Airflow and MLflow (RECIPE=name|file, KEEP=0 stops the servers)
	@infra/install.sh run
	@.venv/bin/stillhouse quickstart $(RECIPE) $(if $(filter 0,$(KEEP)),--stop,)

test: lint unit e2e ## Install, then lint, types, import rules, unit tests, real servers

lint: ## Style, types, import rules
	@infra/install.sh test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

unit: ## Tests that need seconds
	@infra/install.sh test
	.venv/bin/python -m pytest -m "not slow and not docker and not kubernetes and not compose" -n 2 --dist loadfile

e2e: ## Tests that need minutes: real servers, real data, killed processes
	@infra/install.sh test
	.venv/bin/python -m pytest -m "slow and not docker and not kubernetes and not compose" -n 2 --dist loadfile

test-cluster: ## Tests on a real Docker engine, Kubernetes and the compose stack, started for them if need be (Debian, root)
	@infra/install.sh test
	@infra/test-cluster.sh

up: ## Start Airflow, MLflow and S3 as containers, with the tasks beside them: see infra/compose/README.md
	@infra/compose.sh up

down: ## Stop what `make up` started; data stays
	@infra/compose.sh down

images: ## Build the images of tasks, Airflow and MLflow, and list what is in them
	@export $$(infra/engine.sh start) && infra/images.sh

screenshots: ## Take the README's screenshots of a quickstart that is up (needs Chromium)
	@infra/install.sh test
	.venv/bin/python infra/screenshots.py

lock: ## Resolve pyproject.toml anew into infra/locks
	infra/lock.sh

clean: ## Remove the run folder (servers' state, results, caches); keeps .venv
	rm -rf .run
