#!/bin/sh
# Makes .venv, installs the requirements, and shows what the GPU of this machine does with this code: tests, times, runs
# side by side, the hours of the paper's tables. It takes about ten minutes. The results are written to results/gpu/.
# Without a GPU: sh scripts/gpu.sh --device cpu --quick tries the same in a minute or two.
set -eu
REQUIREMENTS=requirements-dev.txt
. "$(dirname "$0")/setup.sh"
exec .venv/bin/python benchmarks/gpu.py "$@"
