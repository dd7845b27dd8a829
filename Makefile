# make demo     a real model becomes a classifier and classifies a real file
# make test     the tests, from nothing
# VENV=DIR takes another virtual environment than .venv.
# TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu" takes PyTorch without CUDA on Linux.

PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
PYTEST_ARGS ?=

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.vllm-cls
CONSTRAINED := -c constraints.txt
SELF := -e ".[gguf]"
SELF_DEV := -e ".[dev,gguf,vision,report,ray]"
LINT := .lint

# A registry can fail for a moment: three tries.
define pip_install
for try in 1 2 3; do \
	$(BIN)/python -m pip install --disable-pip-version-check -qq $(1) && break; \
	if [ $$try = 3 ]; then exit 1; fi; \
	sleep 10; \
done
endef

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-avx2 test-slow test-exhaustive lint format bench clean

help:
	@echo "make demo       convert a real model, classify a real file (no model hub, no GPU)"
	@echo "make test       the tests, in a virtual environment of their own"
	@echo "make test-avx2  the tests as a processor without AVX-512 runs them"
	@echo "make test-slow  the tests with real models"
	@echo "make test-exhaustive  every case of which the others try a sample: an hour"
	@echo "make lint       ruff, import-linter, mypy"
	@echo "make bench      the benchmarks"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first: a range such as torch>=2.11 would take the newest build there is.
$(STAMP)-base: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing vllm-cls into $(VENV) ..."
	@$(call pip_install,$(CONSTRAINED) $(TORCH_ARGS) torch)
	@$(call pip_install,$(CONSTRAINED) $(SELF))
	@touch $@

$(STAMP)-demo: examples/requirements-demo.txt $(STAMP)-base
	@$(call pip_install,--no-deps -r $<)
	@touch $@

$(STAMP)-sentiment: examples/requirements-sentiment.txt $(STAMP)-base
	@$(call pip_install,--no-deps -r $<)
	@touch $@

$(STAMP)-dev: $(STAMP)-base
	@$(call pip_install,$(CONSTRAINED) $(SELF_DEV))
	@touch $@

venv: $(STAMP)-dev $(STAMP)-demo $(STAMP)-sentiment

demo: $(STAMP)-demo
	@PATH="$(BIN):$$PATH" bash examples/demo.sh

test: venv
	$(BIN)/python -m pytest -m "not slow and not exhaustive" $(PYTEST_ARGS)

# torch and our own C, oneDNN and MKL each have a word for it.
test-avx2: export ATEN_CPU_CAPABILITY = avx2
test-avx2: export ONEDNN_MAX_CPU_ISA = AVX2
test-avx2: export MKL_ENABLE_INSTRUCTIONS = AVX2
test-avx2: test

test-slow: venv
	$(BIN)/python -m pytest -m "slow and not exhaustive" $(PYTEST_ARGS)

test-exhaustive: venv
	$(BIN)/python -m pytest -m exhaustive $(PYTEST_ARGS)

# mypy and import-linter see mapped packages only where they are installed, so they read an installed wheel.
lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(LINT) build && mkdir -p $(LINT)
	@$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w $(LINT) .
	@$(BIN)/python -m pip install -q --no-deps --target $(LINT)/site $(LINT)/*.whl
	@rm -rf build
	cd $(LINT)/site && PYTHONPATH=. $(BIN)/lint-imports --config ../../pyproject.toml --cache-dir ../../.import_linter_cache
	cd $(LINT)/site && $(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p vllm_cls

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv
	@for file in $(wildcard benchmarks/[!_]*.py); do echo "== $$file"; $(BIN)/python $$file || exit 1; done
	@for name in codebase.structure codebase.call_path server.speed server.soak; do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf .venv $(LINT) build demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
