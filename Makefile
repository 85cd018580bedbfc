# The commands of a checkout.  Everything they make stays inside it: .venv,
# .venv-3.X for other Pythons, .venv-docs for Sphinx, .venv-fuzz for atheris, and .real for
# the parts of the end-to-end tests that other people wrote.  A file .made in each says that it is complete.

PYTHON ?= python3
BIN := .venv/bin
DEFINITIONS := pyproject.toml setup.py mcpbridge/_version.py

# options of `make serve` and of `make test`, e.g. make serve SERVE="--ping-interval 5"
SERVE ?=
TESTS ?=
# seconds for each target of `make fuzz`, and which ones, by default all
FUZZ ?= 20
TARGETS ?=

# In CI, and where it is asked for, a missing part or a skipped test is a failure.
STRICT := $(CI)$(MCPBRIDGE_REQUIRE_REAL)
PYTEST := -m pytest $(if $(STRICT),-p tests.no_skips)
# What another Python may run in another way: neither the documents nor the package itself.
# What passes on the oldest and the newest hardly ever fails on one in between.
ON_NEWEST := tests/unit tests/integration tests/fuzz tests/e2e
ON_OTHERS := tests/unit
# More workers than cores, as tests of processes wait most of the time.
WORKERS ?= 4
SPREAD := --numprocesses $(WORKERS) --dist loadgroup
# A line that says what happens now, with the seconds since make was started.
ifndef MAKE_STARTED
export MAKE_STARTED := $(shell date +%s)
endif
say = printf '[%4d s] %s\n' "$$(($$(date +%s) - $(MAKE_STARTED)))" $(1)
PIP := -m pip install --quiet --disable-pip-version-check
# An environment with no pip of its own is made in a second: the one of .venv serves it.
PIP_FOR = $(BIN)/python -m pip --python $(1)/bin/python install --quiet --disable-pip-version-check

# tests that must pass with the fast path on and off: compatibility with APISIX, and HTTP
CONTRACT := $(wildcard tests/e2e/test_contract_*.py) tests/e2e/test_teardown.py \
    tests/e2e/test_backpressure.py tests/e2e/test_http.py tests/e2e/test_streamable_http.py \
    tests/e2e/test_stateless_http.py tests/e2e/test_access_matrix.py \
    tests/e2e/test_foreign_handles.py tests/e2e/test_hostile_auth.py \
    tests/e2e/test_behind_nginx.py

.PHONY: help serve test whole lint unit others others.made others.tested real coverage floors mutants fuzz bench bench-quick conformance soak docs news dist clean
.DEFAULT_GOAL := help

help: ## show these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) \
	    | while read -r name what; do printf 'make %-11s %s\n' "$$name" "$$what"; done

serve: .venv/.made ## run the bridge in front of the demo server
	@echo 'Try it from another terminal, with the URL in /sse that stands below:  curl -N URL'
	@exec $(BIN)/mcpbridge $(SERVE) -- $(CURDIR)/$(BIN)/python -m mcpbridge.demo

test: ## run everything: the tools, the whole suite, and the suite on other Pythons
	@$(call say,'the tools and the environments')
	@$(MAKE) --no-print-directory --jobs=2 \
	    $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) lint real others.made
	@log=$$(mktemp); \
	$(MAKE) --no-print-directory others.tested 3>&1 >"$$log" 2>&1 & others=$$!; \
	status=0; $(MAKE) --no-print-directory whole || status=$$?; \
	$(call say,'waiting for the tests on the other Pythons'); \
	wait $$others || status=$$?; $(call say,'what they said:'); cat "$$log"; rm -f "$$log"; exit $$status

# Much of it waits for processes: the other Pythons have that time.  They are made
# before, as that compiles the launcher anew.
whole: .venv/.made-dev
	@$(call say,'the whole suite')
	rm -f .coverage .coverage.*
	$(BIN)/coverage run $(PYTEST) -p tests.measured $(SPREAD) $(TESTS)
	@$(call say,'coverage')
	@$(MAKE) --no-print-directory floors
	@$(call say,'the contract tests without the fast path')
	MCPBRIDGE_FAST_PATH=off $(BIN)/python $(PYTEST) $(SPREAD) $(CONTRACT) $(TESTS)

lint: .venv/.made-dev ## run ruff and mypy
	@$(call say,'ruff and mypy')
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In memory alone, on every core, with few examples of each property: the inner loop.
unit: .venv/.made-dev ## run the unit tests, in under a minute
	$(BIN)/python $(PYTEST) --numprocesses auto --dist worksteal --hypothesis-profile quick \
	    $(if $(filter tests/%,$(TESTS)),,tests/unit) $(TESTS)

# The output of `make test` for these comes at its end; what happens meanwhile goes to
# descriptor 3, if it is open.
others: others.made others.tested ## run the quick tests on other Pythons from 3.11 on: all on the newest, unit tests on the rest
others.made others.tested: others.%: .venv/.made-dev
	@others=$$($(BIN)/python tests/real/pythons.py) || exit 1; \
	for other in $$others; do newest=$$other; done; \
	for other in $$others; do \
	    tests='$(ON_OTHERS)'; test "$$other" != "$$newest" || tests='$(ON_NEWEST)'; \
	    { $(call say,"Python $${other%%=*}: $*") >&3; } 2>/dev/null \
	        || $(call say,"Python $${other%%=*}: $*"); \
	    $(MAKE) --no-print-directory OTHER="$${other#*=}" "ON_OTHERS=$$tests" ".venv-$${other%%=*}/.$*" \
	        || exit 1; \
	done

coverage: .venv/.made-dev ## measure what the unit and integration tests reach, which has a floor
	rm -f .coverage .coverage.*
	$(BIN)/coverage run $(PYTEST) -q -p tests.measured $(SPREAD) tests/unit tests/integration
	@$(MAKE) --no-print-directory floors

# The rooms without I/O have no branch that their own tests do not take.
FLOOR := 92
comma := ,
SANS_IO := jsonrpc mcp translation
EACH_SANS_IO = $(subst $(eval ) ,$(comma),$(foreach room,$(SANS_IO),$(1)$(room)$(2)))
floors:
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=100 \
	    --include='$(call EACH_SANS_IO,mcpbridge/,/*)' --contexts='^$$,$(call EACH_SANS_IO,^,$$)'
	$(BIN)/coverage report --fail-under=$(FLOOR)

MUTANTS ?=
mutants: .venv/.made-dev ## try mutants of the subtle modules, or of MUTANTS='mcpbridge/mcp/pings.py ...'
	$(BIN)/python -m tests.mutants $(MUTANTS)

# atheris has no wheel for every Python and system.  Without it hypothesis makes the inputs.
fuzz: .venv-fuzz/.made-fuzz ## fuzz each parser for FUZZ=20 seconds, or only TARGETS='bearer ...'
	.venv-fuzz/bin/python -m tests.fuzz.run --seconds $(FUZZ) $(TARGETS)

.venv-fuzz/.made-fuzz: $(DEFINITIONS) | .venv/.made
	$(PYTHON) -m venv --without-pip .venv-fuzz
	$(call PIP_FOR,.venv-fuzz) --editable '.[test]'
	@$(call PIP_FOR,.venv-fuzz) --only-binary :all: 'atheris>=3' 2>/dev/null \
	    || echo 'atheris cannot be installed here: hypothesis fuzzes alone'
	@touch $@

bench: .venv/.made ## measure against the floor and other bridges, in under 15 minutes
	@$(call say,'building the load generator and installing the other bridges')
	$(BIN)/python benchmarks/run.py

bench-quick: .venv/.made ## the same in three minutes, in one round with fewer bridges
	@$(call say,'building the load generator and installing the other bridges')
	$(BIN)/python benchmarks/run.py --quick

CONFORMANCE_PARTS := $(patsubst %,.real/%/.made,client1 client2 node conformance)
conformance: .venv/.made-dev $(CONFORMANCE_PARTS) ## run the MCP conformance suites
	@$(call say,'the conformance suites')
	$(BIN)/python -m tests.conformance.run $(CONFORMANCE)
	@$(call say,'one of them with a token')
	$(BIN)/python -m tests.conformance.run --auth --only 2026-07-28 $(CONFORMANCE)
	@$(call say,'one of them through a second bridge')
	$(BIN)/python -m tests.conformance.run --remote --only dual-era $(CONFORMANCE)

soak: .venv/.made-dev ## end ten thousand sessions in every way, beside two hundred that live
	@$(call say,'ending 10000 sessions in every way')
	MCPBRIDGE_SOAK=10000 MCPBRIDGE_HEALTHY=200 $(BIN)/python $(PYTEST) -s \
	    -o faulthandler_timeout=0 tests/e2e/test_soak.py tests/e2e/test_hostile_backends.py

news: .venv/.made-dev ## print the release notes of the changes since the last release
	$(BIN)/towncrier build --draft

# Each wheel is built from an unpacked source distribution, so that nothing an
# earlier build left here gets into it.
BUILD := $(BIN)/python -m build -Cquiet=true
dist: .venv/.made-dev ## build the source distribution and both wheels, and check them
	rm -rf dist *.egg-info
	MCPBRIDGE_PURE=1 $(BUILD)
	MCPBRIDGE_PURE=0 $(BUILD)
	$(BIN)/twine check --strict dist/*
	@ls dist/*linux_*.whl >/dev/null 2>&1 || { \
	    echo 'no wheel has the launcher: that takes Linux, a C compiler and a static C library'; \
	    exit 1; \
	}

docs: .venv-docs/.made ## build the documentation in build/docs; a warning is an error
	.venv-docs/bin/python -m sphinx -q -E -W --keep-going -c docs -d build/doctrees . build/docs
	@echo 'the documentation is in build/docs/index.html'

clean: ## remove all that was made here
	rm -rf .venv .venv-* .real build dist *.egg-info htmlcov .coverage .coverage.*
	rm -rf benchmarks/.build benchmarks/.peers
	rm -rf .mypy_cache .pytest_cache .ruff_cache twistd.pid twistd.log twisted/plugins/dropin.cache
	find mcpbridge tests twisted -name __pycache__ -prune -exec rm -rf {} +

# The environment to run in, and what developers add to it.
.venv/.made: $(DEFINITIONS)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --editable .
	@touch $@

.venv/.made-dev: .venv/.made
	$(BIN)/python $(PIP) --editable '.[dev]'
	@touch $@

.venv-docs/.made: $(DEFINITIONS)
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP) --editable '.[docs]'
	@touch $@

# Another Python, named by OTHER; the target that tests is never up to date.
.venv-%/.made: $(DEFINITIONS) | .venv/.made
	$(OTHER) -m venv --without-pip .venv-$*
	$(call PIP_FOR,.venv-$*) --editable '.[test]'
	@touch $@

.PHONY: FORCE
FORCE:
.venv-%/.tested: .venv-%/.made FORCE
	.venv-$*/bin/python $(PYTEST) --numprocesses 2 --dist loadgroup \
	    --hypothesis-profile quick -m 'not slow' \
	    $(if $(filter tests/%,$(TESTS)),,$(ON_OTHERS)) $(TESTS)

# Twisted's newest release, or the candidate of the next one while PyPI has it; looked
# for each time.  Not part of `make test`: a failure here is news, and no regression.
.PHONY: twisted-pre
twisted-pre: .venv-twisted-pre/.made ## run the quick tests on the newest Twisted, pre-releases included
	$(call PIP_FOR,.venv-twisted-pre) --pre --upgrade twisted
	.venv-twisted-pre/bin/python -c 'import twisted; print("Twisted", twisted.__version__)'
	.venv-twisted-pre/bin/python $(PYTEST) -m 'not slow' $(TESTS)
.venv-twisted-pre/.made: OTHER := $(PYTHON)

# The real parts.  Without npm, the tests of servers in JavaScript are skipped.
REAL_PYTHON := $(patsubst %,.real/%/.made,client1 client2 fastmcp servers tasks)
REAL_NODE := .real/auth/.made .real/clients/.made .real/conformance/.made
real: .venv/.made-dev $(REAL_PYTHON) .real/node/.made $(REAL_NODE) ## build the parts that other people wrote

$(REAL_PYTHON): .real/%/.made: tests/real/%.txt | .venv/.made-dev
	@$(call say,'installing .real/$* from PyPI')
	rm -rf .real/$*
	$(PYTHON) -m venv --without-pip .real/$*
	$(call PIP_FOR,.real/$*) --requirement $<
	@touch $@

.real/node/.made: tests/real/package.json
$(REAL_NODE): .real/%/.made: tests/real/%.json
.real/node/.made $(REAL_NODE):
	@$(call say,'installing $(@D) from npm')
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $< $(@D)/package.json
	@if command -v npm >/dev/null; then \
	    cd $(@D) && echo 'npm install' \
	    && npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error \
	    && touch .made; \
	else \
	    echo 'npm is not on PATH: the tests of parts in JavaScript will be skipped'; \
	    test -z '$(STRICT)'; \
	fi

.PRECIOUS: .venv-%/.made
