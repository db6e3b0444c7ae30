# Two commands matter to a newcomer: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# Set TORCH_INDEX when your default index would give you the CUDA build of torch (several gigabytes), e.g.
#   make demo TORCH_INDEX=<the URL of the PyTorch CPU index>
TORCH_INDEX ?=
TORCH := torch==2.13.0
# Processes that share the tests; each takes a core and up to a gigabyte.
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q

.PHONY: demo test quick long fuzz promise check audit lint types contracts proto dashboards proto-drift bench clean help
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) (a few minutes at most)"
	$(PIP) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@echo "installing prunewatch with extras hub and demo"
	$(PIP) -e '.[hub,demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	@echo "installing the development tools"
	$(PIP) 'pip>=25.1' && $(PIP) -e '.[hub,demo]' --group dev
	@touch $@

demo: $(VENV)/.demo ## fit, score, prune and swap two detectors on a real stream; prints a report
	$(BIN)/prunewatch demo --once

# Two passes: what bears company in WORKERS processes, then what would starve in it (`alone`) in one. Both always run.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test: $(VENV)/.dev ## the whole test suite, in two processes; more on a larger machine: WORKERS=4
	@failed=0; \
	$(PYTEST) -n $(WORKERS) -m "not long and not alone" || failed=$$?; \
	$(PYTEST) -m "alone and not long" || failed=$$?; \
	exit $$failed

quick: $(VENV)/.dev ## the tests that take seconds, in two processes
	$(PYTEST) -n $(WORKERS) -m "not slow and not alone"

long: $(VENV)/.dev ## thousands of drawn architectures: minutes
	$(BIN)/python -m pytest -m long

fuzz: $(VENV)/.dev ## a million damaged inputs: messages of every call, graphs, manifests, CSV, settings; prints seeds and counts
	$(PYTEST) -s -m long tests/test_fuzz.py

promise: $(VENV)/.dev ## the tests that prove one row of docs/robustness.md: make promise ID=R1
	@test -n "$(ID)" || { echo "which one? make promise ID=R1"; exit 2; }
	$(BIN)/python -m pytest --promise $(ID)

check: lint types contracts proto-drift test ## what CI runs

lint: $(VENV)/.dev ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(VENV)/.audit: pyproject.toml $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check install -q 'pip>=25.1'
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check install -q --group audit
	@touch $@

# pip-audit asks pypi.org; --strict: what could not be asked about is a failure. Not in CI, which must not depend on the day.
audit: $(VENV)/.audit ## bandit, and pip-audit: known holes in the packages installed
	$(VENV)/audit/bin/bandit -q -ll -r detectors pruning server proto
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/audit/installed.txt
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r $(VENV)/audit/installed.txt

types: $(VENV)/.dev ## mypy --strict on the product
	$(BIN)/mypy

contracts: $(VENV)/.dev ## import-linter: which folder may import which
	$(BIN)/lint-imports --no-cache

proto: $(VENV)/.dev ## regenerate what is made of the .proto files: stubs, descriptor, docs/reference.md
	$(BIN)/python proto/generate.py

dashboards: $(VENV)/.dev ## make deploy/grafana/dashboards of deploy/grafana/boards
	$(BIN)/python deploy/grafana/generate.py

proto-drift: $(VENV)/.dev ## fail if the committed ones are not what the .proto files generate
	$(BIN)/python proto/generate.py --check

bench: $(VENV)/.dev ## every benchmark; writes its tables into docs/benchmarks.md
	$(BIN)/python benchmarks/all.py

clean: ## remove what make made
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
