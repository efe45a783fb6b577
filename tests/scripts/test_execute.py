"""How the scripts run their command lines. Most tests replace Python by a stand-in that records its arguments."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections import Counter

import pytest
from conftest import ROOT

import report


def test_a_method_on_the_digits(shell, tmp_path, capsys):
    """A real training. A second start, on a GPU, finds it complete. The report shows it."""
    quick = {"SEEDS": "0", "EPOCHS": "1", "MODELS": "resnet8", "DATASETS": "DIGITS", "METHODS": "ONE"}
    for gpus in ("", "1"):
        done = shell("table4", "--device", "cpu", "--train_size", "128", "--batch_size", "64", **quick, GPUS=gpus)
        assert done.returncode == 0, done.stderr
        assert "1 of 1 runs are complete" in done.stdout
        assert ("is complete: 1 epochs" in done.stdout) == bool(gpus)
    report.main(["--json", str(tmp_path / "runs")])
    (section,) = json.loads(capsys.readouterr().out)["sections"]
    assert [cell["groups"][0]["n"] for cell in section["tables"][0]["rows"][0]["cells"]] == [1]


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
@pytest.mark.parametrize("failing", ["entropy", "random"])  # random: the first run
def test_a_failing_run_does_not_stop_the_others(shell, stand_in, tmp_path, gpus, failing):
    """The end tells which run has failed, and its error, although several runs at a time print nothing else."""
    python = stand_in(f'case $* in *{failing}*) echo "error: diverged" >&2; exit 2 ;; esac\necho "$@" | tee -a $log\n')
    done = shell("table5", PYTHON=python, SEEDS="0", GPUS=gpus)
    assert done.returncode == 1 and "5 of 6 runs are complete" in done.stdout and len(log(tmp_path)) == 5
    assert done.stdout.count("\ntrain_GL.py") == (0 if gpus else 5)
    told = done.stderr.splitlines()[2 - bool(gpus):]  # without GPUs the error was printed at once
    assert told[0].startswith("failed with exit code 2: python train_GL.py ") and f"aggregation {failing}" in told[0]
    assert told[1:-1] == ["error: diverged"] * bool(gpus) and told[-1].startswith("1 run failed: ")


@pytest.mark.parametrize(("gpus", "number"), [("", 3), ("0 1", 6)])
def test_after_three_failures_and_no_success_no_more_runs_start(shell, stand_in, tmp_path, gpus, number):
    python = stand_in('echo "$@" >> $log\nsleep 0.2\necho "error: no data" >&2\nexit 2\n')
    done = shell("table2", PYTHON=python, GPUS=gpus, METHODS="baseline")
    assert done.returncode == 1 and number <= len(log(tmp_path)) < 2 * number
    assert done.stderr.count("error: no data") == len(log(tmp_path))
    assert "so the others were not started" in done.stderr and "are complete" not in done.stdout


def test_every_run_has_failed(shell, stand_in):
    done = shell("study", PYTHON=stand_in("exit 2\n"), METHODS="baseline", SEEDS="0 1 2")
    assert done.returncode == 1 and "0 of 3 runs are complete" in done.stdout and "not started" not in done.stderr


@pytest.mark.parametrize(("failing", "seed", "missing"), [
    ("train.py --model resnet110", 1, 2), ("train.py --model resnet110", 10, 2),
    ("train_GL.py --model resnet110", 1, 0)])  # the last one's folder has the same name
def test_only_students_of_a_failed_teacher_do_not_start(shell, stand_in, tmp_path, failing, seed, missing):
    python = stand_in(f'case "$*" in "{failing} --dataset CIFAR10 "*"--seed {seed} "*) exit 2 ;; esac\n'
                      'echo "$*" >> $log\n')
    done = shell("table6", PYTHON=python, SEEDS="1 10", MODELS="resnet110", SAVE_DIR=f"{tmp_path}/it's $HOME")
    assert done.returncode == 1 and len(log(tmp_path)) == 4 * 4 - 1 - missing
    assert done.stderr.count("not started (the run of its teacher has failed): ") == missing
    assert missing == 0 or not any(f"/CIFAR10/resnet110_seed{seed} " in line for line in log(tmp_path))


def test_a_teacher_of_another_size_has_failed(shell, stand_in, tmp_path):
    """Both teachers have the same name, in different folders."""
    python = stand_in('case "$*" in "train.py "*2500_images*) exit 2 ;; esac\necho "$*" >> $log\n')
    done = shell("cifar100", PYTHON=python, SIZES="10000x60 2500x150", METHODS="KD", SEEDS="0")
    assert done.stderr.count("not started (the run of its teacher has failed): ") == 1
    assert [line.split()[0] for line in log(tmp_path)] == ["train.py", "train_kd.py"]


def take_signals():
    """Take SIGINT and SIGHUP again. Background processes of a shell script ignore the first, those of nohup the second,
    and so do their children, such as tests."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def begin(tmp_path):
    """begin(python, "nohup", GPUS="0") starts table5.sh in a session of its own; -> its process, in its first run."""

    def start(python, *before, **environment):
        process = subprocess.Popen(
            [*before, "sh", ROOT / "scripts" / "table5.sh"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
            env=os.environ | {"PYTHON": python, "SEEDS": "0", "TMPDIR": str(tmp_path), **environment},
            preexec_fn=take_signals)
        while len(log(tmp_path)) < max(1, len(environment.get("GPUS", "").split())):
            assert process.poll() is None
            time.sleep(0.02)
        return process

    return start


WAITS = ('trap "trap \'echo again >> $log\' INT TERM HUP; sleep 0.5; echo saved >> $log; exit 143" INT TERM HUP\n'
         'echo start >> $log\nwhile :; do sleep 0.1; done\n')


@pytest.mark.parametrize(("number", "send"), [
    (signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg), (signal.SIGHUP, os.killpg)])  # killpg: as a terminal does
@pytest.mark.parametrize("gpus", ["", "0 1"])
def test_a_signal_reaches_each_training_once_and_nothing_starts_after_it(begin, stand_in, tmp_path, number, send, gpus):
    """The script ends after the trainings have saved."""
    process = begin(stand_in(WAITS), GPUS=gpus)
    for _ in range(1 + (number == signal.SIGHUP)):  # a shell and its terminal both send it
        send(process.pid, number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "start the script again" in errors
    runs = max(1, len(gpus.split()))
    assert log(tmp_path) == ["start"] * runs + ["saved"] * runs


def test_nothing_starts_after_the_script_was_killed(begin, stand_in, tmp_path):
    process = begin(stand_in('echo start >> $log\nsleep 0.5\necho end >> $log\n'))
    process.kill()
    process.wait()
    process.communicate(timeout=30)  # until xargs ends, which holds the pipe
    assert log(tmp_path) == ["start", "end"]


def test_nohup_ignores_sighup(begin, stand_in, tmp_path):
    process = begin(stand_in("echo start >> $log\nsleep 0.3\n"), "nohup")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 0 and log(tmp_path) == ["start"] * 6


def test_a_machine_without_gnu_xargs(shell, stand_in, few_tools, tmp_path):
    done = shell("table5", PATH=few_tools, PYTHON=stand_in("echo >> $log\n"))
    assert done.returncode == 2 and done.stderr.startswith("error: flock, setsid or GNU's xargs not found")
    assert not log(tmp_path)
