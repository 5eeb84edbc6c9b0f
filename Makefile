# The commands of the house. Each sets up what it needs in .venv, from nothing.
PYTHON ?= python3
PY := .venv/bin/python
PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet

.PHONY: train test test-containers serve lint notebooks docs
train: .venv/core
	$(PY) -m segment.train $(if $(DATA),--data $(DATA)) $(ARGS)

test: .venv/test lint
	$(PY) -m pytest -m "not slow and not gpu and not containers"

test-containers: .venv/containers
	$(PY) -m pytest -m containers

serve: .venv/api
	.venv/bin/gunicorn -c docker/gunicorn.conf.py

lint: .venv/lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

notebooks: .venv/docs
	$(PY) docs/notebooks/run.py $(ARGS)

docs: .venv/docs
	$(PY) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs site/html
	@echo site/html/index.html

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@

.venv/core: .venv/pip setup.cfg
	$(PIP) --editable .[vector]
	touch $@

.venv/test: .venv/core setup.cfg
	$(PIP) --editable .[test]
	touch $@

.venv/containers: .venv/test setup.cfg
	$(PIP) --editable .[containers]
	touch $@

.venv/api: .venv/core setup.cfg
	$(PIP) --editable .[api]
	touch $@

.venv/lint: .venv/core setup.cfg
	$(PIP) --editable .[lint]
	touch $@

.venv/docs: .venv/core setup.cfg
	$(PIP) --editable .[docs]
	touch $@
