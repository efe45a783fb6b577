#!/bin/sh
# Makes .venv, installs the requirements, and runs the linter and the tests. Each core runs one test file at a time.
set -eu
REQUIREMENTS=requirements-dev.txt
. "$(dirname "$0")/setup.sh"
.venv/bin/python -m ruff check .
.venv/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder "$@"
