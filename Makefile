# study: the TMA study on real input, in minutes on two CPU cores.   test: the tests.
# book: the book, into _build/html.   lint: ruff and mypy.   publish: the study's result → book/.
# Every target first makes .venv with the locked dependencies; PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The progress of a run is shown; the bars of the libraries below it are not.
export HF_HUB_DISABLE_PROGRESS_BARS = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: study test book lint publish
.DELETE_ON_ERROR:

study: $(READY)
	@mkdir -p out
	$(BIN)/papermill notebooks/04_tma.ipynb out/04_tma.ipynb -p model llama --log-output --no-progress-bar
	@echo
	@cat out/04_tma/summary.txt
	@echo
	@echo "notebook: out/04_tma.ipynb"
	@echo "figure:   out/04_tma/curves.svg (and curves.png)"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: $(READY)
	$(BIN)/jupyter-book build book/ --all -W -n --keep-going

publish: study
	$(BIN)/python book/publish.py

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, found {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "installing the locked dependencies into $(VENV), about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
