# make train   set up, train the default detector on the embedded data set, evaluate it, write images
# make test    set up, check style and types, run every test
# See README.md for the rest.

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/digits
GPU_OUT ?= runs/gpu
REPORTS = $(if $(filter file,$(origin OUT)),$(GPU_OUT),$(OUT))
BENCH_VENV ?= .bench-venv
BENCH_OUT ?= runs/bench.json
COMPAT_VENV ?= .compat-venv
COMPAT_OUT ?= bench/results/compat-$(shell date +%F).json
DOCS_VENV ?= .docs-venv
DOCS_OUT ?= build/site

PY := $(VENV)/bin/python
BIN := $(CURDIR)/$(VENV)/bin
SOURCES := CMakeLists.txt setup.py pyproject.toml $(wildcard kernels/*/* bindings/*)

# Training on a machine without a GPU needs no CUDA half, and compiling it takes longer than everything else.
TRAIN_CUDA := $(if $(wildcard /dev/nvidiactl),AUTO,OFF)

# The environment with the competitors where it was made, else the one of the tests (which lacks torchvision).
BENCH_PY = $(firstword $(wildcard $(BENCH_VENV)/bin/python) $(PY))

# What the tests run on: what is built here already; else the CUDA half for one generation of GPUs, in a third of the time.
# With FRCNN_LONG it is whole.
TESTED = $(VENV)/$(if $(FRCNN_LONG)$(wildcard $(VENV)/built),built,built-test)

# Every step of `make test`, two at a time: first the one with the long build of its own, last the one that is two
# processes by itself. Each prints when it ends, and none is left out because another failed.
STEPS := test-sanitized check-ruff check-clang-format check-mypy test-suite test-interpreted

.PHONY: train test test-long test-aarch64 test-compat compat-tests compat-bench $(STEPS) check format build wheel bench bench-env gpu-smoke gpu-test gpu-bench docs clean

train: $(VENV)/ready
	@test -f $(VENV)/built || $(MAKE) --no-print-directory $(VENV)/built-cpu
	$(PY) -m frcnn_fast.train --dataset digits --out $(OUT)

# Threads that wait sleep: another step has use for the core.
test: $(TESTED) $(VENV)/test-ready
	@OMP_WAIT_POLICY=passive $(MAKE) --no-print-directory -k -j2 --output-sync=target $(STEPS)

test-suite: $(TESTED) $(VENV)/test-ready
	PATH="$(BIN):$$PATH" $(PY) -m pytest -q

test-sanitized: $(TESTED) $(VENV)/test-ready
	PATH="$(BIN):$$PATH" $(PY) -m tests.run_sanitized

test-interpreted: $(TESTED) $(VENV)/test-ready
	PATH="$(BIN):$$PATH" $(PY) -m tests.run_interpreted

test-long:
	FRCNN_LONG=1 $(MAKE) --no-print-directory test
	$(MAKE) --no-print-directory test-aarch64

# The CPU kernels of another processor, under an emulator.
test-aarch64: build $(VENV)/test-ready
	PATH="$(BIN):$$PATH" $(PY) -m tests.run_aarch64

# Other people's libraries with ours under them, and their checkpoints in ours: the tests, then the report of what runs, what
# is equal and how fast, with the documents' tables of it. An environment of its own, several GB; three hours on two cores.
test-compat: compat-tests compat-bench

compat-tests: build $(COMPAT_VENV)/ready
	$(COMPAT_VENV)/bin/python -m pytest -q tests/compat tests/test_patch.py

# MMCV_ROOT: sources of mmcv 2.1.0, for its own tests.
compat-bench: build $(COMPAT_VENV)/ready
	$(COMPAT_VENV)/bin/python -m bench.compat --json $(COMPAT_OUT) $(if $(MMCV_ROOT),--mmcv-root $(MMCV_ROOT))
	$(COMPAT_VENV)/bin/python -m bench.report --no-plots

# The compiled half serves every torch, so the package is used from where it was built.
$(COMPAT_VENV)/ready: tests/compat/requirements.txt
	$(PYTHON) -m venv $(COMPAT_VENV)
	$(COMPAT_VENV)/bin/python -m pip install -q --disable-pip-version-check -r tests/compat/requirements.txt
	echo "$(CURDIR)" > "$$($(COMPAT_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/frcnn_fast.pth"
	touch $@

check: check-ruff check-clang-format check-mypy

check-ruff: $(VENV)/test-ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

check-clang-format: $(VENV)/test-ready
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cuh' '*.cpp' '*.cu')

# Of frcnn_fast, bench and tests.
check-mypy: $(VENV)/test-ready
	$(BIN)/mypy

format: $(VENV)/test-ready
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cuh' '*.cpp' '*.cu')

build: $(VENV)/built

# The sdist, and a wheel for every Python that is here, without and with the CUDA half, in dist/.
wheel: $(VENV)/test-ready
	PATH="$(BIN):$$PATH" $(PY) -m tests.make_wheels

# On a machine with a GPU and without a network, with the interpreter and the torch that are there: each builds in place for
# that GPU, what is built already excepted, and takes less than ten minutes, the first one three. Reports go into OUT=..., or
# else into GPU_OUT.
gpu-smoke:
	$(PYTHON) -m tests.run_on_gpu --smoke --out $(REPORTS)

gpu-test:
	$(PYTHON) -m tests.run_on_gpu --out $(REPORTS)

# Floors, every row, plots, profiles, Nsight Compute: eight files.
gpu-bench:
	$(PYTHON) -m bench.gpu --out $(REPORTS)

# Every row on the processor, a quarter of an hour on two idle cores. For other choices: python -m bench --help
bench: build
	$(BENCH_PY) -m bench --backend cpu --json $(BENCH_OUT)

# A second environment with the torch that the competitors need: several GB, never needed for the tests. The compiled half
# serves every torch, so the package is used from where it was built.
bench-env: build
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install -q --disable-pip-version-check -r bench/requirements.txt
	echo "$(CURDIR)" > "$$($(BENCH_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/frcnn_fast.pth"

# The pictures of the documents, then the site, in an environment of its own. A link that leads nowhere is an error.
docs: build $(DOCS_VENV)/ready
	$(PY) -m docs.pictures
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(DOCS_VENV)/bin:$$PATH" \
	    $(DOCS_VENV)/bin/mkdocs build --strict --site-dir "$(abspath $(DOCS_OUT))"

$(DOCS_VENV)/ready: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install -q --disable-pip-version-check -r docs/requirements.txt
	touch $@

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test-ready: $(VENV)/ready tests/requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check -r tests/requirements.txt
	touch $@

$(VENV)/built: $(VENV)/ready $(SOURCES)
	PATH="$(BIN):$$PATH" $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	rm -f $(VENV)/built-cpu $(VENV)/built-test
	touch $@

$(VENV)/built-test: $(VENV)/ready $(SOURCES)
	CMAKE_ARGS="$(CMAKE_ARGS) -DFRCNN_FAST_CUDA_ARCHITECTURES=90-real" PATH="$(BIN):$$PATH" \
	    $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/built-cpu: $(VENV)/ready $(SOURCES)
	FRCNN_FAST_CUDA=$(TRAIN_CUDA) PATH="$(BIN):$$PATH" \
	    $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist *.egg-info frcnn_fast/_C*.so $(VENV)/built $(VENV)/built-cpu $(VENV)/built-test
