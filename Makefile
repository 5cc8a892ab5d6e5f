# Works with GNU make 3.81, the one of macOS.
#
#   make test PG=/usr/lib/postgresql/15/bin     with another Postgres than the embedded one
#   make test TESTS=tests/unit CHECKS=          some tests only, without the linters
#   make demo PYTHON=python3.12                 with this Python

PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
PYTHON = $(shell for p in $(PYTHONS); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PG =
TESTS = tests
CHECKS = lint types
MARKERS = not (slow or fault or exhaustive or systemd or image)
PYTEST_OPTIONS =

BIN := .venv/bin
DEV := .venv/.installed-dev
DEMO := .venv/.installed-demo

.PHONY: help demo observe screenshots test test-slow test-systemd test-image fmt lint types fault soak soak-schedules bench schema dashboards clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## See a cluster at work, on a Postgres of its own
	$(BIN)/cluster demo

observe: $(DEMO) ## Watch the demo's cluster in Prometheus and Grafana, until Ctrl-C
	$(BIN)/python -m examples.newsletter.observe

test: $(DEV) $(CHECKS) ## Run the linters, the type checker and the tests, but for slow ones
	$(BIN)/pytest -n auto -m "$(MARKERS)" $(if $(PG),--pg-bin "$(PG)") $(PYTEST_OPTIONS) $(TESTS)

test-slow: $(DEV) ## Run the slow tests: models, benchmark, demo, example applications, generated code
	$(BIN)/pytest -n auto -m "slow and not (fault or exhaustive)" $(if $(PG),--pg-bin "$(PG)") $(PYTEST_OPTIONS) $(TESTS)

test-systemd: $(DEV) ## Try the units under a real systemd; needs root, mmdebstrap and systemd-container
	$(BIN)/pytest -m systemd $(PYTEST_OPTIONS) tests/systemd

test-image: $(DEV) ## Build the image and run it; needs root, mmdebstrap, buildah, podman and runc
	$(BIN)/pytest -m image $(if $(PG),--pg-bin "$(PG)") $(PYTEST_OPTIONS) tests/image

fmt: $(DEV) ## Format the code
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

lint: $(DEV) ## Check style, formatting and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(DEV) ## Check the types
	$(BIN)/mypy

screenshots: $(DEV) ## Take the pictures of the dashboard anew that the documentation shows; needs chromium
	KEEP_SCREENSHOTS=1 $(BIN)/pytest -m browser -k screenshots $(PYTEST_OPTIONS) tests/browser

fault: $(DEV) ## Kill, stop and cut off nodes, workers and servers; go through all there is
	$(BIN)/pytest -n $(shell getconf _NPROCESSORS_ONLN) -m "fault or exhaustive" $(if $(PG),--pg-bin "$(PG)") $(PYTEST_OPTIONS)

soak: $(DEV) ## Run for half an hour, while something is wrong every other minute
	$(BIN)/python -m tests.fault --soak $(if $(PG),--pg-bin "$(PG)")

soak-schedules: $(DEV) ## Fire 200 schedules a second for ten minutes, while nodes are killed and Postgres is restarted
	$(BIN)/python -m tests.fault --schedules $(if $(PG),--pg-bin "$(PG)")

bench: $(DEV) ## Measure
	$(BIN)/python -m bench

schema: $(DEV) ## Write the SQL schema that the migrations add up to
	$(BIN)/python -m cluster.sql.dump

dashboards: $(DEV) ## Write the dashboards and rules that are generated from code
	$(BIN)/python -m grafana.build

clean: ## Remove what make has made; the databases in .cluster stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV): pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(DEV) $(DEMO)

$(DEMO): pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing: apt install python3 (macOS: brew install python)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
