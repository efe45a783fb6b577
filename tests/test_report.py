"""The command line of report.py, and the table that is committed."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from made_up import run

import report
from runtime.errors import UserError


def test_no_run_at_all_is_one_sentence(tmp_path, script):
    done = script("report.py", tmp_path, tmp_path / "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["warning", "warning", "error"]


def test_the_committed_table_is_what_the_committed_records_give():
    """Byte for byte, whatever the machine's encoding."""
    done = subprocess.run([sys.executable, "report.py", "results/study"], cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout == (ROOT / "results" / "study.md").read_bytes()


@pytest.mark.parametrize("flags, absent", [(["--help"], {"torch", "matplotlib", "pandas"}),
                                           (["results/study"], {"torch", "matplotlib"})])
def test_slow_libraries_are_imported_only_if_needed(flags, absent):
    code = ("import sys, report\ntry:\n    report.main(sys.argv[1:])\nfinally:\n"
            "    print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert "argparse" in imported and not imported & absent


@pytest.mark.parametrize("redirection", [">&-", "| true"])
def test_nobody_reads_the_report(redirection):
    """No traceback. The exit code is 1: what was asked for has not come."""
    line = "{ $python report.py results/study; echo exit code $? >&2; }"
    done = subprocess.run(["sh", "-c", f"{line} {redirection}"], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"python": sys.executable})
    *warnings, last = done.stderr.splitlines()
    assert last == "exit code 1" and all(text.startswith("warning: ") for text in warnings) and done.stdout == ""


def test_the_page_replaces_only_files_that_are_not_of_a_run(tmp_path):
    folder = run(tmp_path, "OKDDip", 0, [40.0])
    before = (folder / "metrics.jsonl").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (folder / "metrics.jsonl", folder, ".", pipe):
        with pytest.raises(UserError, match=f"--html cannot replace {path}, which is a folder, a device or a pipe, or"):
            report.main([str(folder), "--html", str(path)])
    assert (folder / "metrics.jsonl").read_bytes() == before and pipe.is_fifo()
