# study: the TMA study with one seed, in minutes on two CPU cores.   test: the tests.
# notebooks: every study at scale pocket, JOBS at a time, and the verdicts.
# publish: the chapters at scale study, from the published runs, without training → book/.
# book: the book, into _build/html.   pdf: the book as one file, _build/pdf/tma.pdf.
# lint: ruff and mypy.
# Every target first makes .venv with the locked dependencies; PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Notebooks at a time; the runs of one use two cores.
JOBS ?= 1
EXECUTED := $(patsubst notebooks/%,out/%,$(sort $(wildcard notebooks/*.ipynb)))
PUBLISHED := $(EXECUTED:out/%=out/published/%)
RUNS := $(wildcard book/runs/*/manifest.json)
SOURCES := $(wildcard tma/*.py tma/*/*.py tma/*/*.toml)

# A notebook that was stopped half way is a draft: only a whole one gets its name.
define execute
@mkdir -p $(@D)
$(BIN)/papermill $< $(@:.ipynb=.draft.ipynb) -p scale $(1) -p output_dir $(@:.ipynb=) $(2) --log-output --no-progress-bar
@mv $(@:.ipynb=.draft.ipynb) $@
endef

# While a model is trained, freed memory up to 32 MB a block is kept for the next step: fewer pages
# have to be cleared. Without glibc it has no effect, and on no number ever.
export GLIBC_TUNABLES = glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=2147483648

# The progress of a run is shown; the bars of the libraries below it are not.
export HF_HUB_DISABLE_PROGRESS_BARS = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: study notebooks test book pdf lint publish
.DELETE_ON_ERROR:

study: out/study/04_tma.ipynb
	@echo
	@cat out/study/04_tma/summary.txt
	@echo
	@$(BIN)/python -m tma.study.claims beside out/study/04_tma/claims.json book/claims.json
	@echo
	@echo "notebook: out/study/04_tma.ipynb"
	@echo "figure:   out/study/04_tma/curves.svg (and curves.png)"

out/study/04_tma.ipynb: notebooks/04_tma.ipynb $(SOURCES) $(READY)
	$(call execute,pocket,-p seeds 1)

# Stopped and called again, finished notebooks stay and the next one goes on from its stored runs.
notebooks: $(READY)
	$(MAKE) --jobs=$(JOBS) $(EXECUTED)
	$(BIN)/python -m tma.study.claims out
	@echo "verdicts: out/claims.json"

out/%.ipynb: notebooks/%.ipynb $(SOURCES) $(READY)
	$(call execute,pocket)

# The chapter on one's own data trains on files of its own, which no run is published of.
out/published/06_your_own_data.ipynb: notebooks/06_your_own_data.ipynb $(SOURCES) $(READY)
	$(call execute,pocket)

out/published/%.ipynb: notebooks/%.ipynb $(SOURCES) $(RUNS) $(READY)
	$(call execute,study)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 \
		--dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: $(READY)
	$(BIN)/jupyter-book build book/ --all -W -n --keep-going

# Printed by Chromium. The next `make book` puts it beside the pages, with a link on the first.
pdf: $(READY)
	$(BIN)/jupyter-book build book/ --builder singlehtml --all -W -n --keep-going
	$(BIN)/python book/pdf.py _build/singlehtml/intro.html _build/pdf/tma.pdf

publish: $(PUBLISHED)
	$(BIN)/python -m tma.study.claims out/published
	$(BIN)/python book/publish.py

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, found {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "installing the locked dependencies into $(VENV), about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
