# The same lines for people and for CI. `make demo` and `make test` do all the set-up they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FIELD := $(wildcard benchmarks/field_*.py)

.PHONY: demo test slow check format docs pictures bench field clean

demo: $(VENV)/installed
	$(BIN)/ich-ray demo --out demo

# A process that dies ends the run: pytest-xdist 3.8 hands empty files to the one in its place and waits for ever.
TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test: $(VENV)/installed
	$(TESTS)

slow: $(VENV)/installed
	$(TESTS) -m "slow or browser"

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, with every link checked: open build/site/index.html.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# docs/pictures, out of what `make demo` has left; needs Chromium.
DEMO ?= demo
pictures: $(VENV)/installed
	$(BIN)/python -m documentation.pictures $(DEMO)

$(VENV)/installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing (PyTorch with CUDA is about 6 GB; a few minutes on a fast line) ..."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

bench: $(VENV)/installed
	for file in $(filter-out %/__init__.py %/contest.py $(FIELD),$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# Beside other systems: those of `pip install '.[peers]'` that are there, the others are named.
field: $(VENV)/installed
	for file in $(FIELD); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build demo
