# `make demo` and `make test` do all of their own set-up; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test check format bench clean

demo: $(VENV)/.ready
	$(BIN)/unimo-ds demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q --durations=15

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not life"

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready
	$(BIN)/python tools/bench.py all

# torch comes first: DeepSpeed's requirement of it is wide, and pip would take whatever satisfies it.
$(VENV)/.ready: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "unimo_ds needs Python 3.10 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch>=2.6' torchvision
	$(BIN)/python -m pip install --quiet --editable '.[report,bench,dev]'
	touch $@

clean:
	rm -rf data/demo data/photos runs/demo
