# make run    serve on 127.0.0.1:3001                 make run ARGS="--port 4000"
# make test   everything the tests need, then lint and all tests      make test ARGS="-k drain -x"
# make lint   ruff and mypy
# make bench  the benchmarks                          make bench ARGS=--quick
# make fuzz   minutes of requests and answers that nobody expects   make fuzz ARGS="--minutes 60 --seed 7"
# make chaos  minutes of everything at once, and an account of every request    make chaos ARGS="--database postgresql --workers 2"
# make clean  remove what these made

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Half of what tests take is waiting. Those that want the machine to themselves (and its slowest process, the recorder) come
# after the others. 5: none was asked for. One after the other, with their output as it comes: make test ARGS="-n 0 -s -k drain"
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal
# Where the tests look for an older SDK: it cannot live beside the newer one of the same name.
OLD_SDK := $(VENV)/sdk/anthropic-0.125
PACKAGING := setup.cfg pyproject.toml

.PHONY: run test site lint bench fuzz chaos clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	@exec $(BIN)/twistd --nodaemon --pidfile= claude-proxy $(ARGS)

test: lint $(OLD_SDK).stamp node site
	@$(BIN)/python -m pytest $(PARALLEL) -m 'not alone' $(ARGS) || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? -eq 5 ]

# The page's own checks. What is built is committed, so that nobody needs npm to install; here it must come out the same.
# Vite wants Node 20.19; where that is missing, a test still holds the page to its source by a digest.
ifeq ($(shell node -p '(([a, b]) => a > 20 || (a == 20 && b >= 19))(process.versions.node.split(".").map(Number))' 2>/dev/null),true)
site: svelte/node_modules/.stamp
	@cd svelte && npm run --silent lint && npm run --silent check && npm test --silent && npm run --silent build
	@! git rev-parse --git-dir >/dev/null 2>&1 || git diff --exit-code --stat -- twisted_proxy/web/static || { \
	  echo 'twisted_proxy/web/static is not what svelte/ builds: commit what was just built' >&2; exit 1; }
else
site: svelte/node_modules/.stamp
	@echo 'The page is not built here: that needs Node 20.19 or newer'
endif

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy twisted/plugins/claude_proxy.py

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m tests.fuzz $(ARGS)

chaos: $(VENV)/dev.stamp
	$(BIN)/python -m tests.chaos $(ARGS)

clean:
	rm -rf $(VENV) build dist benchmarks/build *.egg-info tests/node/node_modules svelte/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
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

svelte/node_modules/.stamp: svelte/package.json svelte/package-lock.json
	@command -v npm >/dev/null || { echo 'The page is checked with Node and npm. On Debian: apt install npm' >&2; exit 1; }
	@echo 'Installing what the page is built with into svelte'
	@cd svelte && npm ci --silent --no-audit --no-fund
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
