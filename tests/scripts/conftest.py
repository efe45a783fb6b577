import os
import shutil
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
def executable():
    """executable(path, body) writes a shell script; -> its path."""

    def write(path, body):
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def stand_in(tmp_path, executable):
    """stand_in(body) -> a PYTHON that runs the shell code ``body`` instead of a training, and all other scripts."""
    others = f"log={tmp_path}/log\ncase $1 in train*) ;; *) exec {sys.executable} \"$@\" ;; esac\n"
    return lambda body: executable(tmp_path / "stand_in", others + body)


@pytest.fixture
def few_tools(tmp_path, executable):
    """A PATH with little else than a shell, and a python3."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("sh", "dirname", "grep", "sed", "tr", "awk"):
        (folder / name).symlink_to(shutil.which(name))
    executable(folder / "python3", f'exec {sys.executable} "$@"')
    return str(folder)
