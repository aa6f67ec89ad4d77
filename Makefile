# The verbs of the repository. Each does all that it needs, from a fresh clone: a virtual environment in .venv,
# the packages in it, the C extensions in place. Stamp files in .venv keep a second run quick.
#
# Another interpreter for .venv: make clean && make PYTHON=python3.13 test

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTENSION_SOURCES := $(wildcard street_fast/*.pyx street_fast/*.pxd street_fast/*.h) \
    street_fast/_wheel_py.py street_fast/_intake_py.py street_fast/_publish_py.py
NPM_LOCKS := $(wildcard clients/*/package-lock.json)
# requires = ["a", "b"] of pyproject.toml, as words for the shell
BUILD_REQUIRES := $(shell sed -n '/^requires = /{s/.*\[//;s/[],]//g;p;}' pyproject.toml)

export PYTHON STREET_FAST_REQUIRE_EXTENSIONS = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help chat test pure js lint fuzz faults sanitize bench wheel clean

help: ## list the verbs
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 17

chat: $(VENV)/built ## run the demo chat at http://127.0.0.1:3000
	@$(BIN)/street-fast demo

# A page and a broker see no difference between the builds; they are tried with one of them.
test: $(VENV)/dev $(VENV)/built js ## all tests: JavaScript, then Python over the compiled build and over the pure one
	@$(WITH_BROWSER) $(PYTEST) && STREET_FAST_PURE=1 $(PYTEST) -m 'not browser and not broker'

pure: $(VENV)/dev ## all tests over the pure-Python build only
	@$(WITH_BROWSER) STREET_FAST_PURE=1 $(PYTEST)

js: $(VENV)/npm ## the tests of the JavaScript client and of the demo's page only
	@if [ -e $(VENV)/npm ]; then npm --prefix clients/js --silent test && npm --prefix clients/demo --silent test; fi

lint: $(VENV)/dev $(VENV)/built ## ruff, mypy --strict, stubtest, cython-lint
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary --strict street_fast
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/check_stubs.sh
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint street_fast

fuzz: $(VENV)/dev $(VENV)/built ## a minute of random input to the parsers, judged by others; ARGS='--seconds 600 --seed 7'
	@$(BIN)/python -m tests.fuzz $(ARGS)

faults: $(VENV)/dev $(VENV)/built ## real servers and brokers killed, stopped and cut, 25 minutes; ARGS=--quick for three of them
	@$(BIN)/python -m tests.faults.programme $(ARGS)

sanitize: $(VENV)/dev ## the tests of the C code over a build with AddressSanitizer and UBSan (in build/sanitize)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/sanitize.sh $(ARGS)

bench: $(VENV)/bench $(VENV)/built ## measure beside other libraries (bench/README.md); make bench ARGS=--quick for a look
	@$(BIN)/python bench/run.py $(ARGS)

wheel: $(VENV)/wheel ## sdist and manylinux wheel in dist/, tried in a clean environment without a compiler
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/build_wheel.sh

clean: ## remove .venv and everything that was built
	@rm -rf $(VENV) build dist street_fast.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@rm -rf clients/*/node_modules clients/*/dist examples/*/node_modules examples/*/dist bench/peers/*/node_modules
	@rm -f street_fast/*.so street_fast/*.c
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# As many processes as there are cores: much of the time is waiting.
PYTEST = $(BIN)/python -m pytest -q -n auto --dist worksteal
# Where there is a Chromium (or can be), the browser tests must run; where there is none, they are skipped.
WITH_BROWSER = chromium=$$(sh tools/install_browser.sh) && export STREET_FAST_CHROMIUM="$$chromium" &&

$(VENV)/made: tools/make_venv.sh
	@sh tools/make_venv.sh $(VENV)
	@$(PIP) install -q $(BUILD_REQUIRES)
	@touch $@

# The package itself is installed in editable form without its extensions; `built` compiles those in place.
INSTALL = STREET_FAST_REQUIRE_EXTENSIONS=0 STREET_FAST_PURE_BUILD=1 $(PIP) install -q --no-build-isolation -e

$(VENV)/installed: $(VENV)/made pyproject.toml
	@$(INSTALL) .
	@touch $@

$(VENV)/dev $(VENV)/bench $(VENV)/wheel: $(VENV)/installed
	@$(INSTALL) '.[$(@F)]'
	@touch $@

# Where there is no Node.js the stamp is not made: the explanation comes every time.
$(VENV)/npm: $(VENV)/made $(NPM_LOCKS)
	@if [ -n "$$(sh tools/install_node.sh)" ]; then \
		for lock in $(NPM_LOCKS); do npm --prefix "$$(dirname $$lock)" --loglevel=error ci --prefer-offline || exit 1; done; touch $@; fi

$(VENV)/built: $(VENV)/installed setup.py $(EXTENSION_SOURCES)
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@
