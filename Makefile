# `make help` lists what there is. All that is needed is Python 3.10 or newer and a package index that pip can reach.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

ifeq ($(OS),Windows_NT)
VENV_PYTHON := $(VENV)/Scripts/python.exe
else
VENV_PYTHON := $(VENV)/bin/python
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench lint format check-host clean

help:
	@echo "make demo    set up .venv, then write output/demo.mp4 and a sheet of its pictures with the Pony"
	@echo "make test    set up .venv, then run all tests; ARGS='tests/core -k geometry' narrows them"
	@echo "make bench   set up .venv, then time each stage beside its floor; ARGS='--device cuda' chooses the device"
	@echo "make lint    set up .venv, then check the code's style and the core's types"
	@echo "make format  set up .venv, then put the code into that style"
	@echo "make check-host    say whether a ComfyUI still has all that the nodes use of it; COMFYUI_PATH names it"
	@echo "make clean   remove .venv and everything else that these commands made"
	@echo "PYTHON=python3.12 chooses the Python; COMFYUI_PATH and COMFYUI_PYTHON say which ComfyUI the tests run in."

setup:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "No '$(PYTHON)' found. Install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" tools/setup_venv.py "$(VENV)"

demo: setup
	@"$(VENV_PYTHON)" -m tools.demo

test: setup
	"$(VENV_PYTHON)" -m pytest $(or $(ARGS),tests)

bench: setup
	"$(VENV_PYTHON)" -m benchmarks --json benchmarks/results.json $(ARGS)

lint: setup
	"$(VENV_PYTHON)" -m ruff check .
	"$(VENV_PYTHON)" -m ruff format --check .
	"$(VENV_PYTHON)" -m mypy

format: setup
	"$(VENV_PYTHON)" -m ruff check --fix .
	"$(VENV_PYTHON)" -m ruff format .

check-host: setup
	@"$(VENV_PYTHON)" -m tools.check_host $(ARGS)

clean:
	rm -rf "$(VENV)" .cache .hypothesis .ruff_cache .pytest_cache tests/.pytest_cache build happyhorse.egg-info output/demo.mp4 output/demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
