# `make demo` and `make test` do all of their own set-up; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: demo demo-tasks test test-kernels test-cluster check format bench clean system slurm

demo: $(VENV)/.ready system
	$(BIN)/unimo-ds demo

# After `make demo`: its model fine-tuned on the tasks of its world.
demo-tasks: $(VENV)/.ready system
	$(BIN)/unimo-ds demo-tasks

# Tests of one process run on two cores, a thread each; those that start processes of their own, one after the other.
TWO := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2
FAST := $(TWO) --dist loadscope -m "not life and not long and not cluster"

test: $(VENV)/.ready system
	$(FAST) --durations=5
	$(TWO) --dist loadgroup --durations=5 -m "long and not life"
	$(BIN)/python -m pytest -q --durations=15 -m life

# Every shipped kernel compiled for every architecture of the table, and compared with the kept report; needs no GPU.
test-kernels: $(VENV)/.ready
	$(BIN)/unimo-ds kernels --compile --processes 2

# A real Slurm of two nodes on this machine: brought up, used, and taken down by the tests.
test-cluster: $(VENV)/.ready slurm
	$(BIN)/python -m pytest -q -m cluster

slurm:
	@command -v slurmctld >/dev/null || test -x /usr/sbin/slurmctld || { \
	  test "$$(id -u)" = 0 || { echo "as root, on Debian: apt-get install slurm-wlm munge"; exit 1; }; \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install slurm-wlm munge >/dev/null; }

check: $(VENV)/.ready system
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(FAST)

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready
	$(BIN)/python tools/bench.py all

# Apertium translates captions there and back, WordNet knows related words: a program and data of the system. Where they are
# missing and cannot be installed, captions get no back-translations and fewer words are known as related; everything runs.
SYSTEM := apertium apertium-eng-cat apertium-eng-spa wordnet-base
system:
	@if ! command -v apertium >/dev/null || ! test -d /usr/share/wordnet; then \
	  if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	    (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install $(SYSTEM) >/dev/null) \
	      || echo "NOTE: $(SYSTEM) could not be installed: no back-translations, fewer related words"; \
	  else echo "NOTE: without back-translations, and with fewer related words; on Debian: sudo apt-get install $(SYSTEM)"; fi; fi

# torch comes first: DeepSpeed's requirement of it is wide, and pip would take whatever satisfies it.
$(VENV)/.ready: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "unimo_ds needs Python 3.10 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch>=2.6' torchvision
	$(BIN)/python -m pip install --quiet --editable '.[report,augment,tasks,bench,dev]'
	touch $@

clean:
	rm -rf data/demo data/photos runs/demo
