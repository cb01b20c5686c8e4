# Everything sets itself up: only Python 3.11 or later, git and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEMO := build/demo
PODS := build/pods_env
CUDA := build/cuda_env

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-all test-pods test-cuda fuzz lock mutants demo docs dist clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(READY)  ## Make a virtual environment with everything in it.

$(READY): EXTRAS := test,ray,docs
# libtpu says on standard error of every JAX program that it finds no TPU: it
# has an environment of its own.
$(PODS)/ready: EXTRAS := test,compile
$(CUDA)/ready: EXTRAS := test,compile-cuda

# uv takes a quarter of pip's time. It knows nothing of pip's settings, where an
# index may be named: what it does not find, pip may. Bytecode, as pip has it:
# without, and where the environment has Python write none, a start takes twice
# as long.
$(READY) $(PODS)/ready $(CUDA)/ready: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: $(PYTHON) is older than 3.11: use make PYTHON=python3.11.' >&2; exit 2; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --compile-bytecode \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]' || \
	  $(@D)/bin/python -m pip install --quiet \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

lint: $(READY)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)
	$(BIN)/hadolint Dockerfile

format: $(READY)  ## Mend style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY)  ## Run the fast tests, nine of ten, in minutes.
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not pods and not cuda"

test-all: $(READY)  ## Run all tests.
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-pods: $(PODS)/ready  ## Run the tests that compile for TPU pods.
	$(PODS)/bin/python -m pytest -m pods

test-cuda: $(CUDA)/ready  ## Run the tests that compile for GPUs; 5 GB to fetch.
	$(CUDA)/bin/python -m pytest -m cuda

demo: $(READY) $(DEMO)/data/test/dataset.json  ## Train on synthetic faces, in minutes.
	$(BIN)/jamsface train --config=configs/demo.py --workdir=$(DEMO)/run
	$(BIN)/jamsface embed --workdir=$(DEMO)/run \
	  --images=$(DEMO)/data/test --output=$(DEMO)/run/embeddings \
	  > $(DEMO)/embed.txt
	@cat $(DEMO)/run/summary.txt

$(DEMO)/data/test/dataset.json: | $(READY)
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/jamsface synthesize --output=$(DEMO)/data > $(DEMO)/synthesize.txt

docs: $(READY)  ## Build the documentation as a site, build/site/index.html.
	$(BIN)/zensical build --clean --strict

FUZZ_SECONDS ?= 600
fuzz: $(READY)  ## Fuzz every reader, ten minutes each (FUZZ_SECONDS).
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'atheris>=3'
	$(BIN)/python tests/fuzz.py --seconds=$(FUZZ_SECONDS)

# What of each package goes with the others, for every Python and system at
# once; uv finds it, pip installs it.
lock: build/lock/bin/uv  ## Take the newest packages that go together.
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	  --upgrade --all-extras --no-annotate --no-emit-index-url \
	  --custom-compile-command 'make lock' setup.cfg -o constraints.txt

build/lock/bin/uv:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv

mutants: $(READY)  ## Break the code a line at a time: tests must notice (half an hour).
	$(BIN)/python tests/mutate.py

dist: $(READY)  ## Build wheel and sdist into dist/.
	$(BIN)/python -m build --no-isolation

clean:  ## Delete what make made.
	rm -rf $(VENV) build dist
