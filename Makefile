# `make demo` and `make test` set up everything they need: Python 3.11+, a Rust toolchain and make
# are what they expect to find.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The distributions built from Rust, by their folders.
WHEELS := native_memory native_db native_tools native_tasks plugins/serialization
# Those in pure Python.
PURE := plugins/celery
# Offline, quiet and without telemetry, for whatever runs CrewAI here.
export CREWAI_DISABLE_TELEMETRY := true
export OTEL_SDK_DISABLED := true
export CREWAI_TRACING_ENABLED := false
export CREWAI_DISABLE_VERSION_CHECK := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What every wheel is built from, beside its own folder.
SDK_SOURCES := Cargo.toml Cargo.lock $(shell find host/sdk/src host/sdk/Cargo.toml -type f)
# The modules that the wheels compile to: native_db is crewai_native_db._native.
NATIVE_MODULES = $(foreach wheel,$(WHEELS),$(call package,$(wheel))._native)
package = crewai_native_$(patsubst native_%,%,$(notdir $(1)))
stamp = $(VENV)/$(notdir $(1)).stamp
sources = $(shell find $(1) \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name '*.toml' \) -not -path '*/tests/*')

.DEFAULT_GOAL := help
.PHONY: help setup develop demo test test-python test-rust test-matrix test-crewai check format bench soak dist rehearse lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/requirements.stamp: requirements/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements/dev.txt
	touch $@

# The wheels are what users install, so they are what demo and tests run: a release build. Each is
# built anew when its own sources change.
define WHEEL
$(call stamp,$(1)): $(VENV)/requirements.stamp $(SDK_SOURCES) $(call sources,$(1))
	rm -f $(VENV)/wheels/$(call package,$(1))-*.whl
	$(BIN)/maturin build --quiet --release --interpreter $(BIN)/python --manifest-path $(1)/Cargo.toml --out $(VENV)/wheels
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/wheels/$(call package,$(1))-*.whl
	touch $$@
endef
$(foreach wheel,$(WHEELS),$(eval $(call WHEEL,$(wheel))))

define PURE_WHEEL
$(call stamp,$(1)): $(VENV)/requirements.stamp $(call sources,$(1))
	rm -f $(VENV)/wheels/$(call package,$(1))-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(VENV)/wheels ./$(1)
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/wheels/$(call package,$(1))-*.whl
	touch $$@
endef
$(foreach wheel,$(PURE),$(eval $(call PURE_WHEEL,$(wheel))))

# The host is installed in place: an edited file is in force at once.
$(VENV)/host.stamp: $(VENV)/requirements.stamp pyproject.toml host/crewai_native.pth host/_crewai_native_hook.py
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@# pip compiles what it installs, but not what it installs in place; start-up is measured.
	$(BIN)/python -m compileall -q host/crewai_native
	touch $@

setup: $(VENV)/host.stamp $(foreach wheel,$(WHEELS) $(PURE),$(call stamp,$(wheel))) ## Create .venv with everything built and installed

develop: $(VENV)/host.stamp ## Install the wheels in place, Rust built quickly and without optimisation
	for wheel in $(WHEELS) $(PURE); do $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable ./$$wheel || exit 1; done
	touch $(foreach wheel,$(WHEELS) $(PURE),$(call stamp,$(wheel)))

demo: setup ## Run a crew on stock CrewAI, then accelerated, and compare
	$(BIN)/python -m crewai_native.demo $(ARGS)

test: test-rust test-python ## Run every test

test-rust: $(VENV)/requirements.stamp
	cargo test --workspace --quiet

test-python: setup
	$(BIN)/python -m pytest $(ARGS)

test-matrix: setup ## Run what must hold on every supported CrewAI on the oldest ones too
	scripts/test-matrix 1.14.7 1.15.3

test-crewai: setup ## Run CrewAI's own tests, on stock and with everything bound, and compare
	scripts/crewai-suite $(ARGS)

check: setup ## Formatting, lints, types and stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cargo fmt --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/python -m mypy.stubtest $(NATIVE_MODULES) --ignore-missing-stub

format: $(VENV)/requirements.stamp ## Format Python and Rust
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .
	cargo fmt

soak: setup ## Let tools misbehave at random, for SECONDS=120: nothing may crash, leak or hang
	$(BIN)/python tests/soak/soak.py --seconds $(or $(SECONDS),120)

bench: setup ## Measure what each slot gains on this machine
	$(BIN)/crewai-native bench $(ARGS)

dist: $(VENV)/requirements.stamp ## Build every wheel for publication into dist/
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . $(PURE:%=./%)
	for wheel in $(WHEELS); do $(BIN)/maturin build --quiet --profile dist --interpreter $(BIN)/python --manifest-path $$wheel/Cargo.toml --out dist || exit 1; done

rehearse: setup dist ## Install dist/ as a user would, and take the wheels out one by one
	REHEARSED_WHEELS=dist $(BIN)/python -m pytest tests/e2e/test_install.py $(ARGS)

lock: $(VENV)/requirements.stamp ## Resolve requirements/*.in anew
	$(BIN)/python -m pip install --quiet uv
	for in in requirements/*.in; do $(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --python-version 3.11 $$in --output-file $${in%.in}.txt || exit 1; done

clean: ## Remove what was built
	rm -rf $(VENV) target dist
