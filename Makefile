# The commands of the house. Each sets up what it needs in .venv, from nothing.
PYTHON ?= python3
PY := .venv/bin/python
PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet

.PHONY: train test test-gpu test-containers serve lint size notebooks weights-outputs sheets docs pdf audit
train: .venv/core
	$(PY) -m segment.train $(if $(DATA),--data $(DATA),--learn-at 0.6) $(ARGS)

test: .venv/test lint
	$(PY) -m pytest -n auto -m "not slow and not gpu and not containers"

# On a GPU made of this CPU; on a real one: $(PY) -m pytest -m gpu
test-gpu: .venv/test
	$(PY) tests/fakegpu/build.py env MINICNN_REQUIRE_GPU=1 $(PY) -m pytest -n 2 -m gpu

# The lowest versions that setup.cfg claims, on what depends on them; CuPy, and so the stand-in, wants newer ones.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip --disable-pip-version-check install --quiet $$(.ci/lowest) pytest pytest-timeout hypothesis
	PYTHONPATH=. .venv-lowest/bin/python -m pytest -W default -m "not slow" -k "not stand-in and not cupy" \
	    tests/minicnn/test_ops.py tests/minicnn/test_layers.py tests/minicnn/test_checkpoint.py \
	    tests/segment/data/test_scenes.py tests/segment/geo tests/segment/test_model.py tests/segment/test_plots.py

test-containers: .venv/containers
	$(PY) -m pytest -m containers

serve: .venv/api
	.venv/bin/gunicorn -c docker/gunicorn.conf.py

lint: .venv/lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Lines of Python in every room, and how many there may be.
size:
	@$(PYTHON) .ci/size

notebooks: .venv/docs
	$(PY) docs/notebooks/run.py $(ARGS)

# What is stored of the bundled weights' answers; a test holds their card to them.
weights-outputs: .venv/docs
	$(PY) docs/notebooks/run.py --save docs/notebooks/11_service.ipynb docs/notebooks/12_ten_tiles.ipynb

sheets: .venv/docs
	$(PY) docs/notebooks/sheets.py $(or $(OUT),sheets)

docs: .venv/docs
	$(PY) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs site/html
	$(PY) docs/browser.py site/html/lite
	@echo site/html/index.html

# The course on paper; needs Chromium.
pdf: docs
	$(PY) docs/pdf.py site/html site/course.pdf

# Known weaknesses of the packages in .venv. Where nobody can be asked, that is said, and is no failure.
ADVISORIES := https://api.osv.dev
audit: .venv/audit
	@if $(PY) -c "import requests; requests.get('$(ADVISORIES)', timeout=20)" 2>/dev/null; \
	then .venv/bin/pip-audit --vulnerability-service osv --skip-editable --progress-spinner off; \
	else echo "not audited: the advisory database $(ADVISORIES) cannot be reached"; fi

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@

.venv/core: .venv/pip setup.cfg
	$(PIP) --editable .[vector,mpi]
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

.venv/audit: .venv/api setup.cfg
	$(PIP) --editable .[audit]
	touch $@

.venv/docs: .venv/core setup.cfg
	$(PIP) --editable .[docs]
	touch $@
