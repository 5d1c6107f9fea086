# `make demo` and `make test` do everything from an empty machine; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
OUT ?= out/demo
JOBS ?= 2

# In the ROS environment, on this machine only, with one thread per process: the tests run JOBS at a time.
ros := PYTHON=$(PYTHON) ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST tools/with_ros.sh
pytest := OMP_NUM_THREADS=1 $(ros) .venv/bin/python -m pytest

.PHONY: help setup demo test test-numpy2 lint docs lock clean
.DEFAULT_GOAL := help

help:  ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Make or complete .venv (about 6.5 GB; a few seconds when nothing changed)
	@$(ros) $(PYTHON) tools/setup_venv.py

demo: setup  ## A bag through the ROS 2 detector; own input: IMAGES=DIR CAMERA=FILE, or BAG=DIR; results in OUT=out/demo
	@$(ros) .venv/bin/python -m skd_wm3d_ros.tools.demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(CAMERA),--camera "$(CAMERA)") \
	    $(if $(BAG),--bag "$(BAG)") --out "$(OUT)"

test: setup  ## All tests, with ruff and mypy among them
	@$(pytest) -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

test-numpy2: setup  ## The tests without ROS on numpy 2, in .venv-numpy2 (which borrows everything else from .venv)
	@tools/make_numpy2_venv.sh
	@OMP_NUM_THREADS=1 .venv-numpy2/bin/python -m pytest -n $(JOBS) -m "not slow" --ignore test/ros --ignore test/test_house.py $(PYTEST_ARGS)

lint: setup  ## ruff and mypy alone
	@.venv/bin/ruff check .
	@.venv/bin/mypy

docs:  ## The pages of docs/ as a site in out/docs; in .venv-docs, a small environment of its own
	@test -f .venv-docs/.ready || ($(PYTHON) -m venv --clear .venv-docs && touch .venv-docs/COLCON_IGNORE \
	    && .venv-docs/bin/pip install -qq --disable-pip-version-check -r tools/requirements-docs.txt && touch .venv-docs/.ready)
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

lock: setup  ## Write tools/requirements-lock.txt from what is installed in .venv
	@.venv/bin/python tools/write_lock.py

clean:  ## Remove everything these commands made, environments included
	rm -rf .venv .venv-numpy2 .venv-docs build install log out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find skd_core skd_wm3d_ros test tools launch -name __pycache__ -prune -exec rm -rf {} +
