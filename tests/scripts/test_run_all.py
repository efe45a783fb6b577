"""How the scripts run their command lines. Most tests replace Python by a stand-in that records its arguments."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import ROOT


def test_table_4_on_the_digits(shell, tmp_path):
    """Real trainings. The run that table 5 needs, too, is made once, and the report shows every run."""
    quick = {"SEEDS": "0", "EPOCHS": "1", "MODELS": "resnet8", "DATASETS": "DIGITS"}
    flags = ["--device", "cpu", "--train_size", "256", "--batch_size", "128"]
    done = shell("table4", *flags, **quick)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs are complete" in done.stdout
    left = subprocess.run([sys.executable, ROOT / "scripts" / "run_all.py", "--left"], capture_output=True, text=True,
                          input=shell("table5", *flags, DRY_RUN="1", **quick).stdout)
    assert len(left.stdout.splitlines()) == 5, left.stderr
    report = subprocess.run([sys.executable, ROOT / "report.py", "--json", tmp_path / "runs"], capture_output=True,
                            text=True, check=True)
    (section,) = json.loads(report.stdout)["sections"]
    (row,) = section["tables"][0]["rows"]
    assert sum(len(cell["groups"]) for cell in row["cells"]) == 4


def log(tmp_path):
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def gpu_of(line):
    return shlex.split(line)[-1]


@pytest.mark.parametrize("gpus", ["0 3", "0 0 3 3"])
def test_as_many_runs_at_a_time_on_each_gpu_as_it_is_named(shell, stand_in, tmp_path, gpus):
    python = stand_in('echo "start $@" >> $log\nsleep 0.3\necho "end $@" >> $log\n')
    done = shell("table5", PYTHON=python, GPUS=gpus, SEEDS="0")
    assert done.returncode == 0 and "6 of 6 runs are complete" in done.stdout
    running, most = Counter(), Counter()
    for line in log(tmp_path):
        running[gpu_of(line)] += 1 if line.startswith("start") else -1
        most |= running  # the maximum of each
    assert most == Counter(gpus.split()) and len(log(tmp_path)) == 12


def test_students_wait_for_their_teachers(shell, stand_in, tmp_path):
    python = stand_in('echo "start $@" >> $log\nsleep 0.2\necho "end $@" >> $log\n')
    assert shell("table6", PYTHON=python, GPUS="0 1 2 3", SEEDS="0").returncode == 0
    lines = log(tmp_path)
    first = next(i for i, line in enumerate(lines) if "--T_model_path" in line)
    assert all("--T_model_path" in line for line in lines[first:]) and first == 2 * 4


@pytest.mark.parametrize("gpus", ["", "0 1"])
def test_a_failing_run_does_not_stop_the_others(shell, stand_in, tmp_path, gpus):
    python = stand_in('case "$@" in *entropy*) echo "error: diverged" >&2; exit 2 ;; esac\necho "$@" >> $log\n')
    done = shell("table5", PYTHON=python, SEEDS="0", GPUS=gpus)
    assert done.returncode == 1 and "5 of 6 runs are complete" in done.stdout and len(log(tmp_path)) == 5
    assert "error: diverged" in done.stderr and "entropy" in done.stderr and "Traceback" not in done.stderr


def test_after_three_failures_and_no_success_no_more_runs_start(shell, stand_in, tmp_path):
    python = stand_in('echo "$@" >> $log\necho "error: no data" >&2\nexit 2\n')
    done = shell("table2", PYTHON=python)
    assert done.returncode == 1 and len(log(tmp_path)) == 3 and done.stderr.count("error: no data") == 3
    assert "the first 3 runs failed" in done.stderr and "are complete" not in done.stdout
    done = shell("study", PYTHON=python, METHODS="baseline", SEEDS="0 1 2")
    assert "0 of 3 runs are complete" in done.stdout and "not started" not in done.stderr


def test_a_first_run_that_fails_does_not_stop_the_others(shell, stand_in, tmp_path):
    """It happens if a script is killed and started again while its first training still runs."""
    python = stand_in('case "$@" in *random*) exit 2 ;; esac\necho "$@" >> $log\n')
    done = shell("table5", PYTHON=python, SEEDS="0")
    assert done.returncode == 1 and "5 of 6 runs are complete" in done.stdout and "1 run failed" in done.stderr
    assert len(log(tmp_path)) == 5


def take_signals():
    """Take SIGINT again. Background processes of a shell script ignore it, and so do their children, such as tests."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_nothing_starts_after_it(stand_in, tmp_path, number):
    python = stand_in('trap "echo stopped >> $log; exit 143" TERM\necho start >> $log\nwhile :; do sleep 0.1; done\n')
    process = subprocess.Popen(["sh", ROOT / "scripts" / "table5.sh"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHON": python},
                               preexec_fn=take_signals)
    while not log(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "start the script again" in errors
    assert log(tmp_path) == ["start", "stopped"]


def test_a_student_of_a_failed_teacher_does_not_start(shell, stand_in, tmp_path):
    python = stand_in('case "$*" in *"--model resnet110 --dataset CIFAR100"*) exit 2 ;; esac\necho "$@" >> $log\n')
    done = shell("table6", PYTHON=python, SEEDS="0")
    assert done.returncode == 1 and done.stderr.count("teacher's run has failed") == 2
    students = [line for line in log(tmp_path) if "--T_model_path" in line]
    assert len(students) == 2 and all("CIFAR10 " in line for line in students)


def test_a_failed_run_that_is_no_teacher_does_not_stop_students(shell, stand_in, tmp_path):
    """OKDDip on the teacher's network: the folder has the teacher's name, below another folder."""
    python = stand_in('case "$*" in "train_GL.py --model resnet110"*) exit 2 ;; esac\necho "$1" >> $log\n')
    done = shell("table6", PYTHON=python, SEEDS="0", DATASETS="CIFAR10", MODELS="resnet110")
    assert done.returncode == 1 and "1 run failed" in done.stderr
    assert log(tmp_path) == ["train.py", "train_kd.py", "train_GL.py"]


def test_the_kind_of_a_run(shell):
    """With the same network for teacher and students, only train.py's run is the teacher."""
    lines = "x\n" + shell("table6", DRY_RUN="1", SEEDS="0", DATASETS="CIFAR10", MODELS="resnet110").stdout
    command = [sys.executable, ROOT / "scripts" / "run_all.py", "--left"]
    printed = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[::2][:2] for line in printed] == [
        ["teacher", "train.py"], ["other"], ["other", "train_GL.py"], ["student", "train_kd.py"],
        ["student", "train_GL.py"]]


def test_a_run_that_cannot_start_has_failed(shell, stand_in, tmp_path):
    """The first run deletes the Python of the others."""
    python = stand_in(f'echo "$@" >> $log\nrm {tmp_path}/stand_in\n')
    done = shell("table5", PYTHON=python, SEEDS="0")
    assert done.returncode == 1 and "1 of 6 runs are complete" in done.stdout and "Traceback" not in done.stderr


def test_nohup_ignores_sighup(stand_in, tmp_path):
    python = stand_in('echo start >> $log\nsleep 0.5\n')
    process = subprocess.Popen(["nohup", "sh", ROOT / "scripts" / "table5.sh"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=os.environ | {"PYTHON": python, "SEEDS": "0"})
    while not log(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0 and log(tmp_path) == ["start"] * 6
