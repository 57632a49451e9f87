# Needs make and Python 3.11 or newer; each target sets up .venv by itself, once.
#   make demo        the whole path on a real checkpoint (about forty minutes on two cores); resumes when interrupted
#   make demo-quick  the same, shortened (minutes)
#   make serve-demo  the demo's model (without one the built-in) behind the server, with the page in a browser (SERVE_OPTIONS="--port 9000")
#   make study       a small model through every stage, beside its AR control (at most three hours); resumes
#   make study-quick the same, shortened (at most twenty minutes)
#   make test        the fast test suite
#   make test-full   the slow tests as well (clean installs, killed runs, the faults of `make mutants`)
#   make check       formatting, lint, types, import directions; `make format` mends what can be mended
#   make mutants     one-line faults in the code that the tests must catch
#   make docs        the documentation, strictly, into site/ (a broken link or a docstring that lies is an error)
#   make dist        sdist and wheel into dist/
#   make cli-options records commands and options in tests/data/cli_options.json, after a change that is meant
#   make gpu-check PYTHON=python3 GPU_OPTIONS="--output benchmarks/gpu.json"    on a machine with CUDA: parity, timings;
#                    runs that python from the source tree, installs nothing, needs no network
#   make clean       remove .venv and everything that was built
#   make setup TORCH=torch==2.12.1         another version of torch; TORCH= keeps the one that is in .venv already
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu    torch from another index, e.g. without CUDA
PYTHON ?= python3
GPU_OPTIONS ?=
SERVE_OPTIONS ?=
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS ?= 2

export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
LINT_STAMP := $(VENV)/.ready-check
STUDY_STAMP := $(VENV)/.ready-study
STUDY_OPTIONS ?=

.PHONY: setup test test-full demo demo-quick serve-demo study study-quick check format mutants docs dist cli-options gpu-check clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), difflm needs Python 3.11 or newer; use make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once)"
	@test -z "$(TORCH)" || $(BIN)/python $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(BIN)/python $(PIP) -e ".[test]"
	@touch $@

$(LINT_STAMP): $(STAMP)
	@echo "adding the checkers to $(VENV) (once)"
	@$(BIN)/python $(PIP) -e ".[dev]"
	@touch $@

# One thread for each of the parallel test processes.
test test-full: export OMP_NUM_THREADS ?= 1

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS)

test-full: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) -m "slow or not slow"

demo: $(STAMP)
	$(BIN)/python -m demo.run

demo-quick: $(STAMP)
	$(BIN)/python -m demo.run --quick

serve-demo: $(STAMP)
	$(BIN)/python -m demo.serve $(SERVE_OPTIONS)

$(STUDY_STAMP): $(STAMP)
	@echo "adding reasoning-gym to $(VENV) (once)"
	@$(BIN)/python $(PIP) -e ".[study]"
	@touch $@

study: $(STUDY_STAMP)
	$(BIN)/python -m study.run $(STUDY_OPTIONS)

study-quick: $(STUDY_STAMP)
	$(BIN)/python -m study.run --quick $(STUDY_OPTIONS)

check: $(LINT_STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: $(LINT_STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants

docs: $(LINT_STAMP)
	$(BIN)/python -m mkdocs build --strict --quiet

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist

cli-options: $(STAMP)
	$(BIN)/python -m tests.cli_options

# No .venv: the python at hand, with the CUDA torch that it has.
gpu-check:
	PYTHONPATH=. $(PYTHON) -m difflm.bench.gpu_check $(GPU_OPTIONS)

clean:
	rm -rf $(VENV) dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
