# Everything a developer runs. `make` alone lists it.
#
# Set-up lives in .venv and repeats itself only where something changed: each step ends by writing a stamp, so an
# interrupted step runs again. pip and cargo keep their own configuration: nothing here names a registry.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
# Crates that depend on PyO3 build against the environment's Python, whichever tool starts the build.
export PYO3_PYTHON := $(abspath $(BIN)/python)

CARGO_TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(CARGO_TARGET)/tools
CARGO_FUZZ_VERSION := 0.13.1
CARGO_FUZZ := $(TOOLS)/bin/cargo-fuzz

# Worker processes of pytest, seconds that a fuzz target and `make explore` run, and extra arguments for pytest:
# make test PYTEST_ARGS="-k wire"
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 20
EXPLORE_SECONDS ?= 600

# Tests draw the same numbers in each run; `make explore` sets others.
export PROPTEST_RNG_SEED ?= 1
export PYTHONHASHSEED ?= 0

PYTHON_SOURCES := pycounter tests examples tools $(if $(wildcard bench/*.py bench/*/*.py),bench)
RUST_SOURCES := $(shell find rust -path rust/fuzz -prune -o \( -name '*.rs' -o -name '*.toml' -o -name '*.json' \) -print 2>/dev/null)

# --- set-up ------------------------------------------------------------------------------------------------------

VENV_STAMP := $(VENV)/.stamp-environment
REQUIREMENTS_STAMP := $(VENV)/.stamp-requirements
NATIVE_STAMP := $(VENV)/.stamp-native

# A virtual environment whose Python is gone, or a native module that was deleted, is made again.
ifneq ($(wildcard $(VENV_STAMP)),)
ifneq ($(shell $(BIN)/python -c 'print("works")' 2>/dev/null),works)
$(VENV_STAMP): force
endif
endif
ifeq ($(wildcard pycounter/_native*.so),)
$(NATIVE_STAMP): force
endif

$(VENV_STAMP):
	@python=$$(tools/prerequisites.sh python) && echo "making $(VENV) with $$python" && "$$python" -m venv --clear $(VENV)
	@touch $@

$(REQUIREMENTS_STAMP): requirements-dev.txt $(VENV_STAMP)
	@echo "installing the locked Python packages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt || \
		{ echo "error: pip couldn't install requirements-dev.txt: check the network and 'pip config list', then run make again" >&2; exit 1; }
	@touch $@

$(NATIVE_STAMP): Cargo.toml Cargo.lock pyproject.toml $(RUST_SOURCES) $(REQUIREMENTS_STAMP)
	@tools/prerequisites.sh rust
	@echo "building the native module (a minute or two from scratch)"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable . || \
		{ echo "error: the native module didn't build: where cargo couldn't fetch crates, check the network; then run make again" >&2; exit 1; }
	@touch $@

.PHONY: setup
setup: $(NATIVE_STAMP) ## install the locked tools and build the native module, where anything changed

# --- use ---------------------------------------------------------------------------------------------------------

.PHONY: run
run: setup ## set up, then start the demo: a cluster, clients, kills and live figures
	@exec $(BIN)/pycounter demo

# --- tests -------------------------------------------------------------------------------------------------------

.PHONY: test test-rust test-loom test-python
test: setup ## run every test: Rust, loom models, Python
	@$(MAKE) test-rust
	@$(MAKE) test-loom
	@$(MAKE) test-python

# The bindings convert and call: they are tested from Python, and need no libpython to link against here.
test-rust: $(REQUIREMENTS_STAMP) ## run the engine's tests
	cargo test --locked --quiet --workspace --exclude pycounter-native

# Every interleaving of the atomics. Optimised, without the link-time optimisation that only a release needs.
test-loom: $(REQUIREMENTS_STAMP) ## run the loom models of the concurrent structures
	RUSTFLAGS="$$RUSTFLAGS --cfg pycounter_loom" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo test --locked --quiet --package pycounter-engine --lib --release --target-dir $(CARGO_TARGET)/loom loom_

test-python: setup ## run the Python tests; PYTEST_ARGS passes arguments on
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

.PHONY: explore
explore: setup ## run simulation and tests on random seeds for EXPLORE_SECONDS=600 seconds
	@exec $(BIN)/python -m tests.explore --seconds $(EXPLORE_SECONDS)

.PHONY: fuzz
fuzz: $(CARGO_FUZZ) ## run each fuzz target for FUZZ_SECONDS=20 seconds with AddressSanitizer
	@for target in $$(RUSTC_BOOTSTRAP=1 $(CARGO_FUZZ) list --fuzz-dir rust/fuzz); do \
		echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
		RUSTC_BOOTSTRAP=1 $(CARGO_FUZZ) run --fuzz-dir rust/fuzz "$$target" -- \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4096 -print_final_stats=1 || exit 1; \
	done

$(CARGO_FUZZ):
	@tools/prerequisites.sh rust
	cargo install --quiet --locked --root $(TOOLS) --version $(CARGO_FUZZ_VERSION) cargo-fuzz

# --- benches -----------------------------------------------------------------------------------------------------

.PHONY: bench bench-rust bench-python
bench: bench-rust bench-python ## run the benches of the engine and of the Python module

bench-rust: $(REQUIREMENTS_STAMP) ## run the engine's benches
	cargo bench --locked --workspace --exclude pycounter-native

.PHONY: bench-peers
bench-peers: setup ## compare with Redis, PostgreSQL, ...; 15 minutes, or BENCH_ARGS=--quick
	$(BIN)/python -m bench.peers $(BENCH_ARGS)

bench-python: setup ## run the benches of the Python module
	$(BIN)/python -m pytest --override-ini addopts= --override-ini timeout=600 --import-mode=importlib --benchmark-only bench/python

# --- style -------------------------------------------------------------------------------------------------------

.PHONY: lint lint-python lint-rust
lint: lint-python lint-rust ## check formats, lints, types, layers, stubs and Rust docs; changes nothing

lint-python: setup ## check the Python half
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy $(PYTHON_SOURCES)
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --allowlist tools/stubtest-allowlist.txt pycounter._native

lint-rust: $(REQUIREMENTS_STAMP) ## check the Rust half
	cargo fmt --all --check
	cargo clippy --locked --quiet --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --quiet --workspace --no-deps

.PHONY: format
format: $(REQUIREMENTS_STAMP) ## rewrite sources to the format, and apply the linter's safe fixes
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)
	cargo fmt --all

.PHONY: docs
docs: $(REQUIREMENTS_STAMP) ## build the documentation as a searchable site, target/site, and check its links
	@$(BIN)/python tools/build_site.py

.PHONY: lock
lock: $(REQUIREMENTS_STAMP) ## choose versions anew for requirements-dev.txt, from pyproject.toml
	@tools/lock_requirements.sh

# --- packages ----------------------------------------------------------------------------------------------------

# The wheel is built from the source archive, so that the archive is known to be complete, and with the release profile
# whatever the environment says of it. Unpacked files get the time of now: cargo would take those with the archive's old
# times for what it has built before (and so it goes with `maturin build --sdist`).
UNPACKED := $(abspath $(CARGO_TARGET))/source-archive
.PHONY: wheel sdist
wheel: sdist ## build dist/*.whl from the source archive, and try it where there is no Rust
	@tools/prerequisites.sh rust
	@rm -rf $(UNPACKED) dist/pycounter_engine-*.whl
	@mkdir -p $(UNPACKED)
	@tar --extract --gzip --touch --strip-components=1 --file dist/pycounter_engine-*.tar.gz --directory $(UNPACKED)
	@unset CARGO_PROFILE_RELEASE_LTO CARGO_PROFILE_RELEASE_CODEGEN_UNITS; \
		cd $(UNPACKED) && CARGO_TARGET_DIR=$(abspath $(CARGO_TARGET)) $(abspath $(BIN))/maturin build --quiet --release \
			--interpreter $(abspath $(BIN))/python --out $(abspath dist)
	@tools/try_wheel.sh dist/pycounter_engine-*.whl $(BIN)/python

sdist: $(REQUIREMENTS_STAMP) ## make the source archive, dist/*.tar.gz; `make wheel` builds from one
	@rm -f dist/pycounter_engine-*.tar.gz
	@$(BIN)/maturin sdist --out dist

# --- the rest ----------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## delete the environment and everything built
	rm -rf $(VENV) target dist rust/fuzz/target pycounter/_native*.so
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache .benchmarks
	find pycounter tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: force
force:
