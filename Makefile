# SPDX-License-Identifier: Apache-2.0
# make setup     everything that the other targets need, in .venv (the second time is quick)
# make demo      run an enclave program under softsgx
# make test      the tests; make lint, make types: the other gates
# make wheel     in dist/, for any Python from 3.11 on x86-64 Linux: installing it needs no compiler
# make packages  the wheel and the source, installed where there is no compiler, and used
# make test RUN_OPTIONS=--no-fast-path   the same with every EENTER and EEXIT by a trap; make conformance likewise
# make conformance   the Linux kernel's own SGX selftests, under softsgx; SOFTSGX_OFFLINE=1 allows
#                    that they cannot be tried
# make programs  real programs, with and without softsgx run; INSTALL=1 lets apt-get bring them
# make chaos     programs that are disturbed by signals, for ten minutes or SECONDS=...; SEED=... RUN=...
#                repeats what was decided for one
# make kills     a thousand supervisors, or KILLS=..., killed while pages of enclaves come and go; SEED=...
# make fuzz      damaged files for the verbs of enclaves at rest, for a minute or SECONDS=...; SEED=... CASE=...
#                repeats one
# make differential   random programs, their transitions by a trap and without, for a minute or SECONDS=...;
#                SEED=... COUNT=1 repeats one
# make storm     threads that enter at full rate under signals, exits and EPC pressure: three times three minutes, or
#                SECONDS=...
# make bench     all measurements; make bench NAME=...    one of them

export RUN_OPTIONS ?=

VENV ?= .venv
BIN := $(abspath $(VENV))/bin

# The distribution's Python first: another one on PATH may lack what Debian's packages bring.
ifndef PYTHON
PYTHON := $(shell for python in /usr/bin/python3 python3; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && break; done)
endif
CC ?= cc

SOURCES := pyproject.toml meson.build meson.options $(shell find csrc src -type f ! -name '*.pyc' 2>/dev/null)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint types wheel packages conformance programs chaos kills differential storm fuzz bench clean

setup: $(VENV)/installed

# By name and all at once, so that one apt install is enough.
$(VENV)/bin/python:
	@missing=; \
	command -v $(firstword $(CC)) >/dev/null || missing="$$missing gcc"; \
	test -e /usr/include/stdio.h || missing="$$missing libc6-dev"; \
	test -e /usr/include/x86_64-linux-gnu/asm/sgx.h || test -e /usr/include/asm/sgx.h \
	|| missing="$$missing linux-libc-dev"; \
	test -n "$(PYTHON)" || missing="$$missing python3-venv"; \
	if test -n "$$missing"; then \
	echo "softsgx needs packages that are not installed (Python must be 3.11 or later): apt install$$missing" >&2; \
	exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/requirements.txt: pyproject.toml $(VENV)/bin/python
	@$(BIN)/python -c 'import tomllib; \
	p = tomllib.load(open("pyproject.toml", "rb")); q = p["project"]; \
	print(*p["build-system"]["requires"], *q["dependencies"], *q["optional-dependencies"]["dev"], sep="\n")' > $@.new
	$(BIN)/python -m pip install --quiet -r $@.new
	@mv $@.new $@

$(VENV)/installed: $(VENV)/requirements.txt $(SOURCES)
	PATH="$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall \
	--config-settings=setup-args=-Dvdso=enabled .
	@touch $@

demo: setup
	PATH="$(BIN):$$PATH" bash examples/demo.sh

test: setup
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy --strict src

# meson-python takes whatever lies beside extension modules for one of this Python's, and names no manylinux. The image
# needs neither: tests/packages/packages.sh looks.
wheel: setup
	rm -rf dist/*.whl build/wheel
	PATH="$(BIN):$$PATH" $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel \
	--config-settings=setup-args=-Dvdso=enabled .
	$(BIN)/python -m wheel tags --remove --python-tag py3 --abi-tag none --platform-tag manylinux_2_17_x86_64 \
	build/wheel/*.whl
	mkdir -p dist && mv build/wheel/*.whl dist/
	@echo "dist/: $$(cd dist && echo *.whl)"

packages: wheel demo
	PATH="$(BIN):$$PATH" bash tests/packages/packages.sh

conformance: setup
	@PATH="$(BIN):$$PATH" bash conformance/run.sh; status=$$?; \
	if test $$status -eq 77 && test "$$SOFTSGX_OFFLINE" = 1; then \
	echo "conformance: passed over, for SOFTSGX_OFFLINE=1"; exit 0; fi; \
	if test $$status -eq 77; then echo "conformance: SOFTSGX_OFFLINE=1 would pass over it" >&2; fi; \
	exit $$status

programs: setup
	PATH="$(BIN):$$PATH" $(BIN)/python conformance/programs.py $(if $(INSTALL),--install)

# Options are the target's variables in small letters.
chaos: setup
	PATH="$(BIN):$$PATH" $(BIN)/python tests/chaos/chaos.py \
	$(foreach name,SECONDS SEED RUN JOB TIMES,$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) '$($(name))'))

kills: setup
	PATH="$(BIN):$$PATH" $(BIN)/python tests/chaos/kills.py \
	$(foreach name,KILLS SEED KILL,$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) '$($(name))'))

fuzz: setup
	PATH="$(BIN):$$PATH" $(BIN)/python tests/fuzz/fuzz.py \
	$(foreach name,SECONDS SEED COUNT CASE,$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) '$($(name))'))

differential: setup
	PATH="$(BIN):$$PATH" $(BIN)/python tests/chaos/differential.py \
	$(foreach name,SECONDS SEED COUNT STEPS,$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) '$($(name))'))

# A minute without an end is no hang here.
storm: setup
	PATH="$(BIN):$$PATH" SOFTSGX_STORM_SECONDS=$(or $(SECONDS),180) $(BIN)/python -m pytest -o faulthandler_timeout=0 \
	tests/run/test_run_storm.py

# A name that is given and empty is a mistake, which bench.py tells from none.
bench: setup
	PATH="$(BIN):$$PATH" $(BIN)/python bench/bench.py $(if $(filter-out undefined,$(origin NAME)),'$(NAME)')

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
