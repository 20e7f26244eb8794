# Every target makes the environment first; a second time that costs nothing.
.DEFAULT_GOAL := help
.PHONY: help setup judges peers demo demo-cluster test lint format docs docs-check bench chaos lock

# Where it is set, as in many containers, each of the thousands of processes of the tests compiles
# all of our modules anew: a sixth of what a daemon costs from its start to its end.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
RUFF := .venv/bin/ruff
SOURCES := python tests guest
# Besides the campaigns themselves: whatever `make test` runs only a slice of.
SLICED = $(shell grep -rl --include='test_*.py' -e 'whole: bool' -e 'mark\.long' tests/nix tests/system tests/unit | sort)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: .venv/.ready ## make .venv with everything the other targets need

.venv/.ready: python/requirements.lock python/pyproject.toml .ci/setup
	@.ci/setup

judges: setup .venv-judges/.ready ## fetch the tools of other people that judge us; `make test` needs them

.venv-judges/.ready: python/judges.lock tests/judges/package-lock.json tests/judges/setup
	@tests/judges/setup

peers: setup .venv-peers/.ready ## fetch what other people made that `make bench` measures us against

.venv-peers/.ready: python/peers.lock tests/bench/setup
	@tests/bench/setup

# Built here, for libvirt's library is; so it is fetched for the whole benchmarks only.
.venv-vmcluster/.ready: python/vmcluster.lock tests/bench/setup
	@tests/bench/setup vmcluster

demo: setup ## three tasks in machines, merged; then a machine and its branches; then a task graph
	@$(PY) tests/demo_runs.py
	@echo
	@$(PY) tests/demo_machines.py
	@echo
	@$(PY) tests/demo_graph.py

demo-cluster: setup ## three machines in a network, broken, healed, and put back to where they were
	@$(PY) tests/demo_cluster.py

# Each file of tests has one process to itself, so what they share they share as before.
test: lint docs-check peers ## everything CI runs
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: judges ## ruff and pyright, strict
	@$(RUFF) check $(SOURCES)
	@$(RUFF) format --check $(SOURCES)
	@PATH="$$PWD/.venv/bin:$$PATH" tests/judges/node_modules/.bin/pyright --project python/pyproject.toml

format: setup ## let ruff format and repair what it can
	@$(RUFF) format $(SOURCES)
	@$(RUFF) check --fix $(SOURCES)

docs: setup ## write docs/reference anew from the code
	@$(PY) python/tools/reference.py

docs-check: setup ## fail when docs/reference does not say what the code says
	@$(PY) python/tools/reference.py --check

bench: peers .venv-vmcluster/.ready ## the whole benchmarks, one line per figure
	@$(PY) -m pytest tests/bench -s --whole

chaos: setup ## the whole fault campaigns, and whole all that `make test` runs a slice of; hours
	@$(PY) -m pytest tests/chaos $(SLICED) -s --whole

lock: ## resolve the newest allowed versions into the lock files
	@.ci/lock
