# The front door: every chore is a target here, and .ci/run calls exactly these.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -q
DEMO   ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-segment demo-detect test test-all test-gpu lint types floors fmt bench bench-data chaos lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## build .venv from requirements.lock (Python's venv, uv for speed, pip if uv fails)

# A .venv that came from another folder, or whose Python is gone, points elsewhere: it is built anew.
AT_HOME := $(shell [ "$$(cat $(VENV)/.home 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -c '' 2>/dev/null && echo yes)
ifneq ($(AT_HOME),yes)
.PHONY: $(READY)
endif

$(READY): requirements.lock pyproject.toml
	@if [ "$(AT_HOME)" != yes ]; then \
	  echo "setup: building $(VENV)"; rm -rf $(VENV); \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "setup: swindow needs Python 3.11 or newer; $$($(PYTHON) -V) was found. Try make PYTHON=python3.12 setup" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); \
	fi
	@echo "setup: installing requirements.lock"
	@awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' requirements.lock > $(VENV)/uv.txt
	@{ $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt \
	   && UV_LINK_MODE=copy $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock; } \
	 || { echo "setup: uv did not work, using pip"; $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "$(CURDIR)" > $(VENV)/.home && touch $@

demo: setup  ## train on 1,797 scanned digits, judge, predict, explain (three minutes on two cores)
	@OMP_WAIT_POLICY=passive $(BIN)/python examples/demo.py --out $(DEMO)

demo-segment: setup  ## train on 96 painted towns to name every pixel, judge, predict, explain (four minutes on two cores)
	@OMP_WAIT_POLICY=passive $(BIN)/python examples/demo_segment.py --out $(DEMO)-segment

demo-detect: setup  ## train on 120 painted desks to find what lies on them, judge, predict, explain (three minutes on two cores)
	@OMP_WAIT_POLICY=passive $(BIN)/python examples/demo_detect.py --out $(DEMO)-detect

test: setup  ## the fast tests (tiny configs), in two passes: with shapes checked, and compiled
	$(PYTEST) -n 2 -m "not slow and not gpu and not compiled" --jaxtyping-packages=swindow,beartype.beartype
	$(PYTEST) -n 2 -m "compiled and not slow and not gpu"

test-all: setup  ## also the full-size parity tests and the long ones
	$(PYTEST) -n 2 -m "not gpu and not compiled" --jaxtyping-packages=swindow,beartype.beartype
	$(PYTEST) -n 2 -m "compiled and not gpu"

test-gpu: setup  ## the tests that need an accelerator
	$(PYTEST) -m gpu

lint: setup  ## ruff, import floors, copies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config pyproject.toml --no-cache
	$(BIN)/python -m pylint --disable=all --enable=similarities --min-similarity-lines=10 --ignore-imports=y --ignore-signatures=y src

types: setup  ## mypy, strict where it matters most
	$(BIN)/mypy

fmt: setup  ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: setup  ## kill, cut the power, flip bits, fill disks, and see that training loses nothing (a quarter of an hour)
	OMP_WAIT_POLICY=passive PYTHONPATH=tests $(BIN)/python -m chaos --out

bench: setup  ## the comparisons that need no data of yours (half an hour)
	-OMP_WAIT_POLICY=passive $(BIN)/swindow bench --suite cpu --out benchmarks/results
	$(BIN)/python benchmarks/loop_overhead.py
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/accuracy.py digits --seeds 3

DATA ?= ../shared/data
bench-data: setup  ## the comparisons that need data sets in DATA: distillation, SimMIM, loading, saving (over an hour)
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/async_save.py
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/loading_vs_timm.py $(DATA)/grocery-photos/train
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/distillation.py $(DATA)/fashion-mnist --work runs/distillation
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/simmim.py $(DATA)/grocery-photos --seeds 3

lock: setup  ## renew requirements.lock: names, versions, hashes, no addresses
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --group dev -c constraints.txt --generate-hashes \
	  --universal --python-version 3.11 --no-header --no-annotate -o requirements.lock
	@! grep -nE '://' requirements.lock

clean:  ## remove what the other targets made
	rm -rf $(VENV) runs dist build .pytest_cache .ruff_cache .mypy_cache
