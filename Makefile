# Everything lands in .venv and demo_output; both can be deleted at any time.
PYTHON ?= python3
RUN := .venv/bin/python
DEMO := demo_output

.PHONY: demo view check test lint

demo: .venv/ready
	PYTHON=$(RUN) OUT=$(DEMO) ./demo.sh

view: .venv/ready
	PYTHON=$(RUN) OUT=$(DEMO) ./walk.sh

# What one process of the tests has compiled serves the next, also where Python is told to write nothing.
check test: export PYTHONDONTWRITEBYTECODE :=

# Without the check of every function's types and shapes, which `make test` has.
check: .venv/dev
	$(RUN) -m pytest -n 2 -m 'not slow' -o addopts='-q -p no:anyio'

test: .venv/dev
	$(RUN) -m pytest -n 2 --dist worksteal

lint: .venv/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: .venv/ready requirements-dev.txt
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@
