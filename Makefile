# `make run` and `make test` are the two commands to know; `make help` lists all of them.
PYTHON ?= python3
STATE  ?= run-state
PORT   ?= 8080

VENV   := .venv
PY     := $(VENV)/bin/python
SOURCE := piccolod broker services
# pytest arguments, as `make test T="tests/unit -k codec"`
T      ?= tests
# `make chaos`: how often each fault comes; PICCOLO_TEST_SEED=N repeats a run that printed it
ROUNDS ?= 10

.DEFAULT_GOAL := help
.PHONY: help deps run test chaos lint format bench demo demo-clean demo-image clean packages packages-test packages-bench compiled

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PORT=$(PORT) STATE=$(STATE) PYTHON=$(PYTHON) T=$(T) ROUNDS=$(ROUNDS)"

deps: ## install the system packages and Python libraries that are missing (as root)
	@PYTHON='$(PYTHON)' sh deploy/deps.sh run
	@$(MAKE) --no-print-directory $(VENV)/.run

run: packages $(VENV)/.run compiled ## run piccolod here: state in STATE, API on http://127.0.0.1:PORT, Ctrl-C stops it
	@exec sh deploy/run.sh '$(PY)' '$(STATE)' '$(PORT)'

test: packages-test $(VENV)/.dev compiled ## run every test (as root)
	@$(PY) -m pytest $(T)

chaos: packages-test $(VENV)/.dev compiled ## the faults of tests/chaos at length, ROUNDS times each (as root)
	@PICCOLO_CHAOS_ROUNDS=$(ROUNDS) $(PY) -m pytest tests/chaos

lint: $(VENV)/.dev ## format, lint and type checks, as CI does them
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

format: $(VENV)/.dev ## rewrite the code in the project's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

bench: packages-bench $(VENV)/.dev compiled ## measure, with peers beside it in the same run: a table and JSON
	@$(PY) -m tests.bench

demo: packages-test $(VENV)/.dev compiled ## three machines on this one, joined to one cluster, until Ctrl-C (as root)
	@exec $(PY) -m tests.bed

demo-clean: $(VENV)/.dev ## remove every trace of demos that did not end well (as root)
	@$(PY) -m tests.bed --clean

demo-image: packages $(VENV)/.run ## load localhost/piccolo-demo:1 into the containers of STATE, running or not
	@sh deploy/demo/load.sh '$(PY)' '$(STATE)' '$(PORT)'

clean: ## remove what was built here; STATE stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench-results
	find $(SOURCE) tests -name __pycache__ -type d -prune -exec rm -rf {} +

packages:
	@PYTHON='$(PYTHON)' sh deploy/deps.sh run --quiet

packages-test:
	@PYTHON='$(PYTHON)' sh deploy/deps.sh test --quiet

packages-bench:
	@PYTHON='$(PYTHON)' sh deploy/deps.sh bench --quiet

# Where PYTHONDONTWRITEBYTECODE is set, every start would compile again, which costs a module 5 times its start.
compiled:
	@$(PY) -m compileall -q $(SOURCE)

$(VENV)/.run: pyproject.toml | packages
	@sh deploy/venv.sh '$(PYTHON)' $(VENV) .
	@touch $@

$(VENV)/.dev: pyproject.toml | packages
	@sh deploy/venv.sh '$(PYTHON)' $(VENV) '.[dev]'
	@touch $(VENV)/.run $@
