# SPDX-License-Identifier: GPL-2.0-only
# `make run` and `make test` each set up whatever is missing first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: run test unit integration lint bench setup browser clean

# The one-shot: newest Debian kernel source, no-IOMMU group and cdev, edu and igb.
run: setup
	$(BIN)/vfio-harness run $(ARGS)

# Everything: lint, types, unit tests, then tests that build kernels and boot VMs.
test: setup lint unit integration

setup: $(VENV)/.ready
	$(BIN)/vfio-harness doctor --fix --quiet

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { $(SUDO) apt-get update -q; $(SUDO) apt-get install -y --no-install-recommends python3-venv; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.ready
	$(BIN)/pytest -n auto tests/unit

integration: setup browser
	@# The host's own architecture is checked anyway.  Without the other one its test is skipped, and says why.
	-$(BIN)/vfio-harness doctor --arch arm64 --arch x86_64 --fix --quiet
	$(BIN)/pytest tests/integration

# What the harness costs beside plain virtme-run, as ratios; ARGS=--help lists the measures.
bench: setup
	$(BIN)/python -m tools.bench $(ARGS)

# The HTML report is tried in a real browser.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
		|| { $(SUDO) apt-get update -q; $(SUDO) apt-get install -y --no-install-recommends chromium chromium-driver; }

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
