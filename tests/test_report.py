"""The command line of report.py, and the table that is committed."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from made_up import run

import report
from runtime.errors import UserError


def test_no_run_at_all_is_one_sentence(tmp_path, capsys):
    with pytest.raises(UserError, match="^no finished run in .*: train one, or name another folder$"):
        report.main([str(tmp_path), str(tmp_path / "nowhere")])
    assert capsys.readouterr().err == f"warning: {tmp_path} holds no run\nwarning: {tmp_path}/nowhere does not exist\n"


def test_the_committed_table_is_what_the_committed_records_give():
    """Byte for byte, whatever the machine's encoding, and without waiting for libraries that only figures need."""
    code = "import sys, report\nreport.main(['results/study'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout == (ROOT / "results" / "study.md").read_bytes()
    imported = set(done.stderr.decode().split())
    assert "pandas" in imported and not imported & {"torch", "matplotlib"}


def test_nobody_reads_the_report(tmp_path):
    """No traceback. The exit code is 1: what was asked for has not come."""
    for seed in (0, 1):
        run(tmp_path, "OKDDip", seed, [40.0])
    line = "{ $python report.py $runs; echo exit code $? >&2; }"
    done = subprocess.run(["sh", "-c", f"{line} | true"], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"python": sys.executable, "runs": str(tmp_path)})
    assert done.stderr == "exit code 1\n" and done.stdout == ""


def test_the_page_replaces_only_files_that_are_not_of_a_run(tmp_path):
    folder = run(tmp_path, "OKDDip", 0, [40.0])
    before = (folder / "metrics.jsonl").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (folder / "metrics.jsonl", folder, ".", pipe):
        with pytest.raises(UserError, match=f"--html cannot replace {path}, which is a folder, a device or a pipe, or"):
            report.main([str(folder), "--html", str(path)])
    assert (folder / "metrics.jsonl").read_bytes() == before and pipe.is_fifo()
