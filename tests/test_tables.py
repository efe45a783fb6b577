"""The scripts of the paper's tables and figures: which runs they list, and how these are run."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

SEVEN = ["train.py", "train_one.py --ind", "train_DML.py", "train_one.py --avg --bpscale", "train_one.py",
         "train_GL.py --MulStu", "train_GL.py"]


@pytest.fixture
def shell(tmp_path):
    def start(name, *flags, **environment):
        environment = {"SAVE_DIR": str(tmp_path / "runs"), "PYTHON": sys.executable, **environment}
        done = subprocess.run(["sh", ROOT / "scripts" / f"{name}.sh", *flags], capture_output=True, text=True,
                              cwd=tmp_path, env=os.environ | environment)
        return done

    return start


@pytest.fixture
def listed(shell):
    def dry_run(name, *flags, **environment):
        done = shell(name, *flags, DRY_RUN="1", **environment)
        assert done.returncode == 0 and done.stderr == ""
        lines = done.stdout.splitlines()
        assert all(line.startswith("python train") for line in lines) and len(set(lines)) == len(lines)
        return [shlex.split(line)[1:] for line in lines]

    return dry_run


def flag(command, name):
    return command[command.index(name) + 1] if name in command else None


def test_table2_is_five_networks_seven_methods_three_seeds(listed):
    commands = listed("table2")
    assert len(commands) == 105
    cells = {(flag(c, "--model"), flag(c, "--seed"), tuple(c[:c.index("--model")])) for c in commands}
    branch_based = {"train_one.py --ind", "train_one.py --avg --bpscale", "train_one.py", "train_GL.py"}
    assert cells == {
        (model, str(seed), tuple(shlex.split(m + " --dropout 0.5" * (model == "vgg16" and m in branch_based))))
        for model in ("densenetd40k12", "resnet32", "vgg16", "resnet110", "wide_resnet20_8") for seed in range(3)
        for m in SEVEN}
    assert all(flag(c, "--dataset") == "CIFAR100" and flag(c, "--resume") == "auto" for c in commands)
    assert len({flag(c, "--version") for c in commands}) == 3  # a folder for each seed


@pytest.mark.parametrize("name, runs", [("table1", 105), ("table3", 18), ("table4", 36), ("table5", 18),
                                        ("table6", 24), ("figure3", 54), ("figure4", 12), ("study", 25)])
def test_every_script(listed, name, runs):
    assert len(listed(name)) == runs


def test_the_committed_results_are_the_study_and_all_of_it(listed):
    """By the words of each command: the order of flags has changed since."""
    records = (ROOT / "results" / "study").rglob("parameters.json")
    made = [sorted(shlex.split(json.loads(path.read_text())["command"])) for path in records]
    assert sorted(made) == sorted(map(sorted, listed("study", SAVE_DIR="./runs/study")))


def test_table5_and_table6(listed):
    kinds = {flag(c, "--aggregation") or ("one level" if "--no_leader" in c else "full") for c in listed("table5")}
    assert kinds == {"random", "entropy", "mean", "symmetric", "one level", "full"}
    taught = [c for c in listed("table6") if "--T_model" in c]
    made = {f"{flag(c, '--save_dir')}/{flag(c, '--dataset')}/{flag(c, '--model')}_{flag(c, '--version')}"
            for c in listed("table6") if c[0] == "train.py"}
    assert len(taught) == 12 and {flag(c, "--T_model_path") for c in taught} == made


def test_tables_share_their_runs(listed):
    two = {tuple(c) for c in listed("table2")}
    assert sum(tuple(c) in two for c in listed("table4")) == 27
    assert sum(tuple(c) in two for c in listed("figure3")) == 9
    assert all(tuple(c) in two for c in listed("figure4"))
    sizes = [c for c in listed("figure3") if tuple(c) not in two]
    assert {flag(c, "--num_branches") for c in sizes} == set("35678")
    assert all(flag(c, "--version") == f"m{flag(c, '--num_branches')}_seed{flag(c, '--seed')}" for c in sizes)


def test_the_environment_and_flags(listed):
    (command,) = listed("figure4", "--amp", "bf16", "--data_dir", "with space", SEEDS="7", EPOCHS="5", DATA_DIR="it's",
                        MODELS="resnet8", DATASETS="DIGITS", LENGTH="2")[:1]
    assert flag(command, "--seed") == "7" and flag(command, "--num_epochs") == "5" and flag(command, "--length") == "2"
    assert flag(command, "--data_dir") == "it's" and flag(command, "--model") == "resnet8"
    assert command[-4:] == ["--amp", "bf16", "--data_dir", "with space"]


def test_tables_4_and_5_on_the_digits(shell, tmp_path):
    """Real trainings. The run that both tables have is made once, and the report has a figure of each."""
    quick = {"SEEDS": "0", "EPOCHS": "1", "MODELS": "resnet8", "DATASETS": "DIGITS"}
    for name, runs in (("table4", 4), ("table5", 6)):
        done = shell(name, "--device", "cpu", "--batch_size", "512", **quick)
        assert done.returncode == 0, done.stderr
        assert f"{runs} of {runs} runs are complete" in done.stdout
    assert done.stdout.count("is complete: 1 epochs") == 1
    report = subprocess.run([sys.executable, ROOT / "report.py", "--json", tmp_path / "runs"], capture_output=True,
                            text=True, check=True)
    (section,) = json.loads(report.stdout)["sections"]
    (row,) = section["tables"][0]["rows"]
    assert sum(len(cell["groups"]) for cell in row["cells"]) == 9  # the run without a leader is in both


# --- the runner, with a stand-in for Python that notes what it is told to do -----------------------------------------


@pytest.fixture
def stand_in(tmp_path):
    """stand_in(body) -> a PYTHON that runs the real one on scripts/run_all.py and, for a training, ``body``."""

    def make(body):
        path = tmp_path / "stand_in"
        path.write_text(f"#!/bin/sh\nlog={tmp_path}/log\n"
                        f"case $1 in *run_all.py) exec {sys.executable} \"$@\" ;; esac\n{body}")
        path.chmod(0o755)
        return str(path)

    return make


def log(tmp_path):
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def gpu_of(line):
    return shlex.split(line)[-1]


def test_one_run_at_a_time_on_each_gpu(shell, stand_in, tmp_path):
    python = stand_in('echo "start $@" >> $log\nsleep 0.3\necho "end $@" >> $log\n')
    done = shell("table5", PYTHON=python, GPUS="0 3", SEEDS="0")
    assert done.returncode == 0 and "6 of 6 runs are complete" in done.stdout
    running = []
    for line in log(tmp_path):
        gpu = gpu_of(line)
        running.append(gpu) if line.startswith("start") else running.remove(gpu)
        assert len(set(running)) == len(running) and set(running) <= {"0", "3"}
    assert {gpu_of(line) for line in log(tmp_path)} == {"0", "3"} and len(log(tmp_path)) == 12


def test_students_wait_for_their_teachers(shell, stand_in, tmp_path):
    python = stand_in('echo "start $@" >> $log\nsleep 0.2\necho "end $@" >> $log\n')
    assert shell("table6", PYTHON=python, GPUS="0 1 2 3", SEEDS="0").returncode == 0
    lines = log(tmp_path)
    first_taught = next(i for i, line in enumerate(lines) if "--T_model_path" in line)
    assert all("--T_model_path" in line for line in lines[first_taught:]) and first_taught == 2 * 4


@pytest.mark.parametrize("gpus", ["", "0 1"])
def test_a_failing_run_does_not_stop_the_others(shell, stand_in, tmp_path, gpus):
    python = stand_in('case "$@" in *entropy*) echo "error: diverged" >&2; exit 2 ;; esac\necho "$@" >> $log\n')
    done = shell("table5", PYTHON=python, SEEDS="0", GPUS=gpus)
    assert done.returncode == 1 and "5 of 6 runs are complete" in done.stdout and len(log(tmp_path)) == 5
    assert "error: diverged" in done.stderr and "entropy" in done.stderr and "Traceback" not in done.stderr


def test_what_fails_at_once_is_given_up(shell, stand_in, tmp_path):
    python = stand_in('echo "$@" >> $log\necho "error: no data" >&2\nexit 2\n')
    done = shell("table2", PYTHON=python)
    assert done.returncode == 1 and len(log(tmp_path)) == 3 and done.stderr.count("error: no data") == 3
    assert "the first 3 runs failed" in done.stderr and "are complete" not in done.stdout
    done = shell("study", PYTHON=python, METHODS="baseline")
    assert "0 of 3 runs are complete" in done.stdout and "not tried" not in done.stderr


def test_a_failure_at_the_head_does_not_keep_the_others(shell, stand_in, tmp_path):
    """As where a script was killed, started again at once, and its first run's process is still there."""
    python = stand_in('case "$@" in *random*) exit 2 ;; esac\necho "$@" >> $log\n')
    done = shell("table5", PYTHON=python, SEEDS="0")
    assert done.returncode == 1 and "5 of 6 runs are complete" in done.stdout and "1 run failed" in done.stderr
    assert len(log(tmp_path)) == 5


def heed_signals():
    """What is started in the background of a script has SIGINT ignored, and its children with it: these tests, too."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_nothing_starts_after_it(stand_in, tmp_path, number):
    python = stand_in('trap "echo told >> $log; exit 143" TERM\necho start >> $log\nwhile :; do sleep 0.1; done\n')
    process = subprocess.Popen(["sh", ROOT / "scripts" / "table5.sh"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHON": python},
                               preexec_fn=heed_signals)
    while not log(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "start the script again" in said
    assert log(tmp_path) == ["start", "told"]


def test_no_student_of_a_failed_teacher(shell, stand_in, tmp_path):
    python = stand_in('case "$*" in *"--model resnet110 --dataset CIFAR100"*) exit 2 ;; esac\necho "$@" >> $log\n')
    done = shell("table6", PYTHON=python, SEEDS="0")
    assert done.returncode == 1 and done.stderr.count("teacher's run has failed") == 2
    taught = [line for line in log(tmp_path) if "--T_model_path" in line]
    assert len(taught) == 2 and all("CIFAR10 " in line for line in taught)


def test_what_cannot_be_started_has_failed(shell, stand_in, tmp_path):
    """The runs' Python is gone after the first of them."""
    python = stand_in(f'echo "$@" >> $log\nrm {tmp_path}/stand_in\n')
    done = shell("table5", PYTHON=python, SEEDS="0")
    assert done.returncode == 1 and "1 of 6 runs are complete" in done.stdout and "Traceback" not in done.stderr


def test_nohup(stand_in, tmp_path):
    python = stand_in('echo start >> $log\nsleep 0.5\n')
    process = subprocess.Popen(["nohup", "sh", ROOT / "scripts" / "table5.sh"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=os.environ | {"PYTHON": python, "SEEDS": "0"})
    while not log(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0 and log(tmp_path) == ["start"] * 6


def test_lengths_do_not_share_a_folder(listed):
    places = {flag(listed("table5", EPOCHS=epochs, SAVE_DIR="")[0], "--save_dir") for epochs in ("", "1", "300")}
    assert len(places) == 3


@pytest.mark.parametrize("script, variable", [("table1", "SEEDS"), ("study", "SEEDS"), ("figure3", "BRANCHES")])
@pytest.mark.parametrize("dry", ["", "1"])
def test_nothing_to_run_is_an_error(shell, script, variable, dry):
    done = shell(script, DRY_RUN=dry, **{variable: " "})
    assert done.returncode == 2 and done.stdout == "" and variable in done.stderr


def test_a_method_that_is_not_known(shell):
    done = shell("study", METHODS="OKDip")
    assert done.returncode == 2 and done.stderr == "error: unknown method OKDip\n"
