#!/bin/sh
# Makes .venv, installs what is needed, and runs the linter and the tests.
set -eu
REQUIREMENTS=requirements-dev.txt
. "$(dirname "$0")/setup.sh"
.venv/bin/python -m ruff check .
.venv/bin/python -m pytest -q "$@"
