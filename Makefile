# make train   set up, train the default detector on the embedded data set, evaluate it, write pictures
# make test    set up, run every test
# See README.md for the rest.

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/digits
GPU_OUT ?= runs/gpu

PY := $(VENV)/bin/python
BIN := $(CURDIR)/$(VENV)/bin
SOURCES := CMakeLists.txt setup.py pyproject.toml $(wildcard kernels/*/* bindings/*)

# Training on a machine without a GPU needs no CUDA half, and compiling it takes longer than everything else.
TRAIN_CUDA := $(if $(wildcard /dev/nvidiactl),AUTO,OFF)

.PHONY: train test test-long check format build gpu-test clean

train: $(VENV)/ready
	@test -f $(VENV)/built || $(MAKE) --no-print-directory $(VENV)/built-cpu
	$(PY) -m frcnn_fast.train --dataset digits --out $(OUT)

test: build
	PATH="$(BIN):$$PATH" $(PY) -m pytest -q
	PATH="$(BIN):$$PATH" $(PY) -m tests.run_sanitized

test-long: build
	FRCNN_LONG=1 PATH="$(BIN):$$PATH" $(PY) -m pytest -q
	FRCNN_LONG=1 PATH="$(BIN):$$PATH" $(PY) -m tests.run_sanitized

check: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cuh' '*.cpp' '*.cu')

format: $(VENV)/ready
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cuh' '*.cpp' '*.cu')

build: $(VENV)/built

# On a machine with a GPU and without a network: the interpreter and the torch that are there, built in place.
gpu-test:
	FRCNN_FAST_CUDA=ON $(PYTHON) setup.py -q build_ext --inplace
	$(PYTHON) -m tests.run_on_gpu --out $(GPU_OUT)

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/built: $(VENV)/ready $(SOURCES)
	PATH="$(BIN):$$PATH" $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	rm -f $(VENV)/built-cpu
	touch $@

$(VENV)/built-cpu: $(VENV)/ready $(SOURCES)
	FRCNN_FAST_CUDA=$(TRAIN_CUDA) PATH="$(BIN):$$PATH" \
	    $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist *.egg-info frcnn_fast/_C*.so $(VENV)/built $(VENV)/built-cpu
