import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def shell(tmp_path):
    """shell("table2", "--amp", "bf16", SEEDS="0") runs scripts/table2.sh; -> the finished process."""

    def start(name, *flags, **environment):
        environment = {"SAVE_DIR": str(tmp_path / "runs"), "PYTHON": sys.executable, **environment}
        return subprocess.run(["sh", ROOT / "scripts" / f"{name}.sh", *flags], capture_output=True, text=True,
                              cwd=tmp_path, env=os.environ | environment)

    return start


@pytest.fixture
def stand_in(tmp_path):
    """stand_in(body) -> a PYTHON that runs the shell code ``body`` instead of a training, and all other scripts."""

    def make(body):
        path = tmp_path / "stand_in"
        path.write_text(f"#!/bin/sh\nlog={tmp_path}/log\n"
                        f"case $1 in train*) ;; *) exec {sys.executable} \"$@\" ;; esac\n{body}")
        path.chmod(0o755)
        return str(path)

    return make
