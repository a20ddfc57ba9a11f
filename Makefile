# The first use of any target makes .venv and installs everything; later uses start at once.
#   make sweep ARGS="grid.position=[rope,abf] seed=1"
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: sweep test test-all ui lint clean bench

sweep: .venv/installed
	$(BIN)/python -m lit_long.sweep $(ARGS)

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" $(ARGS)

test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu" $(ARGS)

bench: .venv/installed
	$(BIN)/python -m pytest -p no:xdist -s tests/benchmarks/bench_*.py $(ARGS)

ui: .venv/installed
	bash mlflow/serve.sh

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "kept: runs/ and mlflow/mlflow.db, your results"
