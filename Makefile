# make serve sets up .venv, and make test adds the tools of the tests to it; nothing is needed first but Python 3.11 to 3.14,
# a C compiler and make.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

READY := $(VENV)/.ready
TOOLS := $(VENV)/.ready-tools
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# meinheld: without greenlets it needs none (the version it asks for compiles on no Python above 3.9) and takes half the
# processor time; with the lenient URL parser, raw non-ASCII bytes in a query string are stored instead of answered with 400.
# Neither can be seen in a cached wheel, so none is used. CPPFLAGS, because CFLAGS would drop -DNDEBUG, and then it aborts.
# Python 3.13 and later cannot load it; there granian serves.
export MEINHELD_NOGREEN := 1
MEINHELD_CPPFLAGS := -DHTTP_PARSER_STRICT=0

.PHONY: install serve test check-install demo lint bench-short clean

install: $(TOOLS)

$(READY): pyproject.toml setup.py constraints.txt $(wildcard ext/*)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "kanalony needs Python 3.11 to 3.14; name one with make PYTHON=python3.13"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools>=77' Cython wheel
	CPPFLAGS="$(MEINHELD_CPPFLAGS)" $(PIP) --no-cache-dir --no-binary meinheld --no-build-isolation "meinheld; python_version < '3.13'"
	$(PIP) --no-build-isolation --editable '.[meinheld,lake]'
	@touch $@

$(TOOLS): $(READY)
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

serve: $(READY)
	@exec $(BIN)/kanalony serve $(ARGS)

demo: $(TOOLS)
	@exec $(BIN)/python -m demo $(ARGS)

test: $(TOOLS)
	$(BIN)/python -m pytest $(ARGS)

# Builds the sdist and wheels, and tries them in clean environments on every Python there is.
check-install:
	@exec $(PYTHON) .ci/install.py $(ARGS)

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Short versions: that the benchmarks run and balance; figures of time mean nothing at this size.
bench-short: $(TOOLS)
	$(BIN)/python -m benchmarks ingest --rounds 1 --seconds 1
	$(BIN)/python -m benchmarks append --events 20000 --no-instructions
	$(BIN)/python -m benchmarks replay --rounds 1 --events 20000
	$(BIN)/python -m benchmarks segments --rounds 1 --events 10000
	$(BIN)/python -m benchmarks connections --connections 500 --rounds 1 --seconds 1
	$(BIN)/python -m benchmarks crash --rounds 5
	$(BIN)/python -m benchmarks restart --rounds 3
	$(BIN)/python -m benchmarks soak --seconds 20
	$(BIN)/python -m benchmarks compact --events 20000 --events 50000 --rounds 1
	$(BIN)/python -m benchmarks compact-crash --rounds 4
	$(BIN)/python -m benchmarks report --events 20000

clean:
	rm -rf .venv* build *.egg-info kanalony/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
