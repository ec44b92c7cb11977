# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3

.PHONY: demo test clean
demo: .venv/installed
	.venv/bin/linegate demo $(ARGS)

test: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports
	.venv-test/bin/python -m pytest $(ARGS)

.venv/installed: EXTRA = demo
.venv-test/installed: EXTRA = test

%/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Linegate needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $*
# torch alone first, at its exact version: a range would fetch another build of it.
	if [ "$(EXTRA)" = test ]; then $*/bin/python -m pip install --quiet torch==2.13.0; fi
	$*/bin/python -m pip install --quiet --editable '.[$(EXTRA)]'
# albumentations brings the headless OpenCV beside the other; both own the folder cv2, so they must be one version.
	if [ "$(EXTRA)" = test ]; then $*/bin/python -m pip install --quiet "opencv-python-headless==$$($*/bin/python -c 'from importlib.metadata import version; print(version("opencv-python"))')"; fi
	touch $@

clean:
	rm -rf .venv .venv-test build dist .mypy_cache .pytest_cache .ruff_cache
