# make run    serve on 127.0.0.1:3001                 make run ARGS="--port 4000"
# make test   everything the tests need, then lint and all tests      make test ARGS="-k drain -x"
# make lint   ruff and mypy
# make bench  the benchmarks                          make bench ARGS=--quick
# make clean  remove what these made

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Where the tests look for an older SDK: it cannot live beside the newer one of the same name.
OLD_SDK := $(VENV)/sdk/anthropic-0.125
PACKAGING := setup.cfg pyproject.toml

.PHONY: run test lint bench clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	@exec $(BIN)/twistd --nodaemon --pidfile= claude-proxy $(ARGS)

test: lint $(OLD_SDK).stamp node
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy twisted/plugins/claude_proxy.py

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) build dist benchmarks/build *.egg-info tests/node/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find twisted_proxy twisted tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache twistd.pid

# A stamp says which state of its prerequisites is installed; a second run has nothing to do.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'claude-proxy needs Python 3.11 or newer; $(PYTHON) is '"$$($(PYTHON) --version 2>&1)"'.' \
	       'Choose another: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) cannot make virtual environments. On Debian: apt install python3-venv' >&2; exit 1; }
	@echo 'Making the virtual environment $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/run.stamp: $(PACKAGING) | $(BIN)/python
	@echo 'Installing claude-proxy into $(VENV)'
	@$(PIP) install --editable .
	@touch $@

$(VENV)/dev.stamp: $(PACKAGING) | $(BIN)/python
	@echo 'Installing claude-proxy and what its tests need into $(VENV)'
	@$(PIP) install --editable '.[test,dev]'
	@touch $@ $(VENV)/run.stamp

$(OLD_SDK).stamp: Makefile | $(BIN)/python
	@echo 'Installing anthropic 0.125 into $(OLD_SDK)'
	@rm -rf $(OLD_SDK)
	@$(PIP) install --target $(OLD_SDK) 'anthropic == 0.125.*'
	@touch $@

.PHONY: node
ifneq ($(wildcard tests/node/package.json),)
node: tests/node/node_modules/.stamp
endif

tests/node/node_modules/.stamp: $(wildcard tests/node/package.json tests/node/package-lock.json)
	@command -v npm >/dev/null || { echo 'The tests need Node and npm. On Debian: apt install npm' >&2; exit 1; }
	@echo 'Installing the Node SDK into tests/node'
	@cd tests/node && npm $(if $(wildcard tests/node/package-lock.json),ci,install) --silent --no-audit --no-fund
	@touch $@
