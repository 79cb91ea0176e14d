# `make run` and `make test` are all that a new clone needs: python >= 3.11, a C++ compiler, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.gossamer-setup
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)
BENCHMARKS := $(filter-out %/plot.py %/side_by_side.py,$(wildcard benchmarks/*/*.py))
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup run test sanitize reproduce bench lint wheel
.DEFAULT_GOAL := run

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Gossamer needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The extension is also laid beside the sources, so that PYTHONPATH=src works without the installation.
# A failed build leaves a cache that would fail again once there is a compiler, so it goes.
$(STAMP): $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt scikit_build_core nanobind cmake ninja
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	rm -f src/gossamer/_native.*
	$(BIN)/python -c 'import pathlib, shutil, sysconfig; [shutil.copy(f, "src/gossamer") for f in pathlib.Path(sysconfig.get_path("platlib"), "gossamer").glob("_native.*")]'
	@ls src/gossamer/_native.* >/dev/null 2>&1 || { rm -rf build; \
	  echo "The native kernels were not built: slower plain-torch versions run. With a C++20 compiler: make -B setup"; }
	touch $@

run: setup
	$(BIN)/python -m gossamer.cli demo

test: setup
	$(ONE_THREAD) timeout 15m $(BIN)/python -m pytest -q -n 2 -m "not slow"

# The kernel tests on a build that stops at the first bad access or undefined operation.
sanitize: setup
	$(ONE_THREAD) $(BIN)/python tests/sanitize.py

reproduce: setup
	$(BIN)/python -m gossamer.cli reproduce --stale

# Every table and two plots in out/bench; a script that lacks an extra says so and the others run.
bench: setup
	@mkdir -p out/bench
	@for script in $(BENCHMARKS); do echo "$$script"; \
	  $(BIN)/python "$$script" > "out/bench/$$(basename $$script .py).md" || echo "$$script did not finish"; done
	@for table in layers fully_connected; do \
	  $(BIN)/python benchmarks/execution/plot.py out/bench/$$table.md out/bench/$$table.png; done

lint: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy src/gossamer

wheel: setup
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist .
