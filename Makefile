# `make serve` sets up .venv, and `make test` adds the tools of the tests to it. Needs Python 3.11 to 3.14, a C compiler
# and make.

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

.PHONY: install serve test test-all check-install demo lint bench-short fuzz fuzz-readers clean

install: $(TOOLS)

$(READY): pyproject.toml setup.py constraints.txt $(wildcard kanalony/core/*.pyx kanalony/core/*.pxd kanalony/core/*.h)
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

# The quick tests in JOBS processes, with fewer examples for each property. Tests wait for processes as often as they
# compute: on two cores they take 4 min 14 s in two processes, 3 min 33 s in three.
JOBS ?= 3
PARALLEL := -n $(JOBS) --dist worksteal
test: $(TOOLS)
	$(BIN)/python -m pytest --hypothesis-profile fast $(PARALLEL) -m "not slow and not serial" $(ARGS)

# Everything, as CI runs it, with the coverage of Python, then that of Cython and C. Tests marked serial follow alone, and
# without coverage, which would slow down what they measure.
test-all: export COVERAGE_FILE := $(CURDIR)/build/coverage/python
test-all: $(TOOLS)
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest --hypothesis-profile full $(PARALLEL) -m "not serial" $(ARGS)
	$(BIN)/python -m pytest -m serial $(ARGS)
	@$(BIN)/coverage combine --quiet
	$(BIN)/python .ci/native_coverage.py -n $(JOBS)
	@$(BIN)/coverage report

# Builds the sdist and wheels, and installs and tries them in clean environments on every Python found.
check-install:
	@exec $(PYTHON) .ci/install.py $(ARGS)

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest kanalony.core
	PATH="$(BIN):$$PATH" $(BIN)/cython-lint kanalony/core # runs pycodestyle, which it looks for in PATH
	$(BIN)/clang-format --dry-run --Werror kanalony/core/*.h fuzz/*.c fuzz/*.h

# The pages of docs/ that follow from the code: commands.md and configuration.md.
.PHONY: docs
docs: $(TOOLS)
	$(BIN)/python -m docs
	$(BIN)/python -m tests.source_map

# Short versions show that the benchmarks run and that no event is lost. They run side by side, so their figures of time
# mean nothing.
BENCHMARKS := ingest replay compact connections compact-crash restart segments crash report soak append
OPTIONS_ingest := --rounds 1 --seconds 1
OPTIONS_replay := --rounds 1 --events 10000
OPTIONS_compact := --events 10000 --events 20000 --rounds 1
OPTIONS_connections := --connections 500 --rounds 1 --seconds 1
OPTIONS_compact-crash := --rounds 3
OPTIONS_restart := --rounds 2
OPTIONS_segments := --rounds 1 --events 10000
OPTIONS_crash := --rounds 3
OPTIONS_report := --events 20000
OPTIONS_soak := --seconds 10
OPTIONS_append := --events 20000 --no-instructions

bench-short: $(TOOLS)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target $(BENCHMARKS:%=bench-short-%)

bench-short-%:
	$(BIN)/python -m benchmarks $* $(OPTIONS_$*)

# The C headers under libFuzzer, and the compiled readers on damaged files, all with the address and undefined-behaviour sanitizers.
# Needs clang and its runtime (Debian: clang, libclang-rt-dev). FUZZ_SECONDS is for each target, and for the readers.
FUZZ_SECONDS ?= 120
# Any number but 0 gives the same inputs each time, so that CI fails for what a change did and not for its luck.
FUZZ_SEED ?=
FUZZ_TARGETS := records query json columns redact
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g -fno-omit-frame-pointer

build/fuzz/%: fuzz/%.c fuzz/check.h $(wildcard kanalony/core/*.h)
	@mkdir -p build/fuzz
	clang -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-function -fsanitize=fuzzer $(SANITIZERS) -Ikanalony/core -o $@ $<

fuzz: $(addprefix build/fuzz/,$(FUZZ_TARGETS)) fuzz-readers
	@set -e; for target in $(FUZZ_TARGETS); do \
		echo "libFuzzer: $$target, $(FUZZ_SECONDS) s"; \
		mkdir -p build/fuzz/corpus/$$target; \
		build/fuzz/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
			-seed=$(or $(FUZZ_SEED),0) -verbosity=0 -dict=fuzz/words.dict -artifact_prefix=build/fuzz/$$target- \
			build/fuzz/corpus/$$target $$(ls -d fuzz/seeds/$$target 2>/dev/null); \
	done

fuzz-readers: $(TOOLS)
	@rm -rf build/sanitized/lib.*
	CFLAGS="$(SANITIZERS)" $(BIN)/python setup.py --quiet build --build-base build/sanitized
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		PYTHONPATH="$$(echo $(CURDIR)/build/sanitized/lib.*):$(CURDIR)" $(BIN)/python fuzz/readers.py --seconds $(FUZZ_SECONDS) $(FUZZ_SEED:%=--seed %)

clean:
	rm -rf .venv* build *.egg-info kanalony/core/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
