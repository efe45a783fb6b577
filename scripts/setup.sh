# demo.sh, gpu.sh and test.sh source this file. It goes to the repository's root, makes .venv there if there is none, and
# installs the packages of the file $REQUIREMENTS.
CDPATH='' cd -- "$(dirname "$0")/.." > /dev/null
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "error: Python 3.10 or newer is needed; name one with PYTHON=/path/to/python3 sh $0" >&2
    exit 2
}
.venv/bin/python -m pip --version > /dev/null 2>&1 || "$PYTHON" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
