"""scripts/slurm.sh: what it hands to sbatch, and what a real SLURM makes of it (slow, and skipped without one)."""

import contextlib
import importlib
import json
import os
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import slurm_cluster
from conftest import ROOT
from image_data import make_images
from processes import Training, assert_same_run

BASELINE = {"METHODS": "baseline", "SEEDS": "0"}


# --- what sbatch gets


@pytest.fixture
def tools(tmp_path, executable):
    """A folder with an sbatch that keeps what it gets, and programs that act as SLURM's, in front of PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    programs = {
        "sbatch": f"cd {folder}; n=$(($(ls | grep -c job) + 1)); cat > job$n; printf '%s\\n' \"$@\" > flags$n; echo $n",
        "squeue": f"[ ! -e {folder}/queue ] || cat {folder}/queue",
        "scontrol": f'echo "$@" >> {folder}/asked',
        "srun": 'while case $1 in -*) ;; *) false ;; esac; do shift; done; input=$(cat); code=0; SLURM_PROCID=0\n'
                'export SLURM_PROCID; while [ $SLURM_PROCID -lt $SLURM_NTASKS ]; do\n'
                'printf "%s\\n" "$input" | "$@" || code=$?; SLURM_PROCID=$((SLURM_PROCID + 1)); done; exit $code'}
    for name, body in programs.items():
        executable(folder / name, body)
    return folder


@pytest.fixture
def submit(shell, tools):
    """submit("table6.sh", flags...) -> the flags of each array that sbatch got."""

    def start(*words, **environment):
        for path in [*tools.glob("job*"), *tools.glob("flags*")]:
            path.unlink()
        done = shell("slurm", *words, PATH=f"{tools}:{os.environ['PATH']}", **environment)
        assert done.returncode == 0, done.stderr
        return [path.read_text().splitlines() for path in sorted(tools.glob("flags*"))]

    return start


def run_task(tools, number, task, tasks=1):
    """Do what SLURM does with a task of an array; -> its exit code."""
    about = {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NTASKS": str(tasks)}
    path = f"{tools}:{os.environ['PATH']}"
    return subprocess.run(["sh", tools / f"job{number}"], env=os.environ | about | {"PATH": path}, cwd=ROOT).returncode


def value(flags, name):
    return next((flag.split("=", 1)[1] for flag in reversed(flags) if flag.startswith(f"{name}=")), None)


def test_flags_are_sbatch_s_until_two_dashes(submit, tools):
    (flags,) = submit("study.sh", "--gres=none", "--comment", "it's two words", "--", "--amp", "bf16", **BASELINE)
    assert value(flags, "--gres") == "none" and "it's two words" in flags and "--amp" not in flags
    assert (tools / "job1").read_text().count(" --amp bf16 ;;") == 1


def test_the_tasks_are_the_lines_of_the_script(submit, shell, stand_in, tools, tmp_path):
    """Each once, the teachers first, with any path; three runs on a GPU."""
    paths = {"SAVE_DIR": f"{tmp_path}/it's $HOME 5%", "DATA_DIR": 'two  "words"'}
    python = stand_in('for word; do printf "%s " "[$word]"; done >> $log; echo >> $log\n')
    first, students = submit("table6.sh", PER_GPU="3", SEEDS="0", PYTHON=python, **paths)
    for flags in (first, students):
        assert value(flags, "--array") == "0-1" and value(flags, "--ntasks") == "3" and value(flags, "--nodes") == "1"
        assert value(flags, "--gres") == "gpu:1" and value(flags, "--signal") == "TERM@120" and "--requeue" in flags
        assert value(flags, "--output") == f"{tmp_path}/it's $HOME 5%%/slurm/%A_%a.out"
    assert value(first, "--dependency") is None
    assert value(students, "--dependency") == "afterok:1_0"  # both teachers are in this task
    for number in (1, 2):
        for task in (0, 1):
            assert run_task(tools, number, task, 3) == 0
    lines = shell("table6", DRY_RUN="1", SEEDS="0", **paths).stdout.splitlines()
    expected = ["".join(f"[{word}] " for word in shlex.split(line)[1:]) for line in lines]
    ran = (tmp_path / "log").read_text().splitlines()
    assert sorted(ran) == sorted(expected) and all("[train.py]" in line for line in ran[:2])


def test_a_task_that_sigterm_has_stopped_is_queued_again(submit, stand_in, tools):
    """Even if another run on its GPU has failed. It alone, not its whole array."""
    python = stand_in('case "$*" in *seed0*) exit 2 ;; *seed1*) exit 1 ;; *seed2*) exit 143 ;; *) exit 2 ;; esac\n')
    submit("study.sh", METHODS="baseline", SEEDS="0 1 3 2", PER_GPU="2", PYTHON=python)
    assert run_task(tools, 1, 0, 2) == 1 and not (tools / "asked").exists()
    assert run_task(tools, 1, 1, 2) == 143 and (tools / "asked").read_text() == "requeue 1_1\n"


def test_jobs_of_a_folder_wait_for_earlier_ones(submit, tools):
    (tools / "queue").write_text(":12\n:10\n:12\n")
    first, students = submit("study.sh", METHODS="KD", SEEDS="0")
    assert value(first, "--dependency") == "afterany:10:12"
    assert value(students, "--dependency") == "afterany:10:12,afterok:1_0"
    (other,) = submit("study.sh", **BASELINE)
    assert value(other, "--job-name") == value(first, "--job-name") == value(students, "--job-name")
    (elsewhere,) = submit("study.sh", SAVE_DIR=str(tools / "runs"), **BASELINE)
    assert value(elsewhere, "--job-name") != value(other, "--job-name")


def test_students_wait_for_a_teacher_from_a_file(submit):
    _, students = submit("table6.sh", METHODS="KD", SEEDS="0", DATASETS="CIFAR10", T_MODEL="nets/small.py:Net")
    assert value(students, "--dependency") == "afterok:1_0"


def finish(line, method="", more="", epochs=40):
    """Make files as a run of the study leaves them; -> its folder. more: flags at the end of its command."""
    script, *words = shlex.split(line + more)[1:]
    flags = vars(importlib.import_module(script.removesuffix(".py")).parse_args(words))
    place = Path(flags["save_dir"], flags["dataset"], method, f"{flags['model']}_{flags['version']}")
    place.mkdir(parents=True, exist_ok=True)
    about = {"method": method or "baseline", "command": shlex.join([script, *words])}
    (place / "parameters.json").write_text(json.dumps(flags | about))
    (place / "summary.json").write_text(json.dumps({"last": {"epoch": epochs}}))
    (place / "last.pth").touch()
    return place


def test_finished_runs_are_not_submitted(submit, shell, tools):
    some = {"METHODS": "baseline KD", "SEEDS": "0"}
    teacher, baseline, student = shell("study", DRY_RUN="1", **some).stdout.splitlines()
    finish(teacher)
    finish(baseline, epochs=30)
    first, students = submit("study.sh", **some)
    assert value(first, "--array") == value(students, "--array") == "0-0" and value(students, "--dependency") is None
    finish(baseline, more=" --gpu_id 3")  # without SLURM
    of_student = finish(student, "KD").parent
    aside = of_student.rename(of_student.with_name("KD_old"))  # runs that were moved are trained anew
    assert len(submit("study.sh", **some)) == 1
    aside.rename(of_student)
    done = shell("slurm", "study.sh", PATH=f"{tools}:{os.environ['PATH']}", **some)
    assert done.returncode == 0 and done.stdout == "all runs of study.sh are finished: nothing to submit\n"


def test_each_size_of_the_study_has_a_folder(submit, shell):
    sizes = {"SIZES": "9x40 8x40", "METHODS": "baseline", "SEEDS": "0"}
    name = value(*submit("cifar100.sh", **sizes), "--job-name")
    finish(shell("cifar100", DRY_RUN="1", **sizes).stdout.splitlines()[1])
    (left,) = submit("cifar100.sh", **sizes | {"SIZES": "8x40 9x40"})
    assert value(left, "--array") == "0-0" and value(left, "--job-name") == name


def test_dry_run_prints_the_jobs(shell, tmp_path):
    """Of the commands of the docs."""
    page = (ROOT / "docs" / "reproducing.md").read_text()
    one, four = re.findall(r"^(?:PER_GPU=(\d) )?sh scripts/slurm.sh (.*?) +#", page, re.MULTILINE)
    for (per_gpu, words), arrays, tasks, runs in ((one, 1, "--array=0-34", 35), (four, 2, "--array=0-0", 8)):
        done = shell("slurm", *words.split(), DRY_RUN="1", PER_GPU=per_gpu, SEEDS="0", PATH=os.environ["PATH"])
        assert done.returncode == 0 and done.stderr == "" and not (tmp_path / "runs").exists()
        assert done.stdout.count("sbatch --gres=gpu:1 ") == done.stdout.count(f" {tasks} ") == arrays
        assert done.stdout.count(" exec ") == runs


@pytest.mark.parametrize("words, environment, said", [
    (["table2.sh"], {}, "sbatch not found"), ([], {}, "is no script that lists runs"),
    (["table9.sh"], {}, "table9.sh is no script that lists runs"), (["demo.sh"], {}, "demo.sh is no script"),
    (["table2.sh"], {"PER_GPU": "0"}, "PER_GPU must be"), (["table2.sh"], {"PER_GPU": "2x"}, "PER_GPU must be"),
    (["table2.sh"], {"SEEDS": " ", "DRY_RUN": "1"}, "no run: ")])
def test_mistakes_are_one_line(shell, few_tools, words, environment, said):
    done = shell("slurm", *words, PATH=few_tools, **environment)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and said in done.stderr


@pytest.mark.parametrize(("broken", "body", "said"), [
    ("squeue", "echo 'slurm: no controller' >&2; exit 1", "squeue does not say which runs are in the queue"),
    ("sbatch", "cat > /dev/null; echo Submitted batch job 7", "sbatch printed no job number, check its flags"),
    ("sbatch", "cat > /dev/null; exit 1", ""),
    ("sbatch", "[ ! -e $0.1 ] || exit 1; cat > $0.1; echo 1", "start this again"),
    (None, "", "study/slurm cannot be made"), (None, "\\", "choose a SAVE_DIR without a backslash")])
def test_nothing_goes_wrong_silently(shell, tools, executable, tmp_path, broken, body, said):
    """SLURM's programs fail, or the folder does. The exit code says so, and no run is submitted without order."""
    environment = {"METHODS": "KD", "SEEDS": "0", "PATH": f"{tools}:{os.environ['PATH']}"}
    if broken:
        executable(tools / broken, body)
    else:
        (tmp_path / "file").touch()
        environment["SAVE_DIR"] = f"{tmp_path}/file{body}/study"
    done = shell("slurm", "study.sh", **environment)
    assert done.returncode == 2 and said in done.stderr
    assert not list(tools.glob("job*"))


# --- a real SLURM


@pytest.fixture(scope="module")
def cluster():
    if missing := slurm_cluster.missing():
        pytest.skip(f"no SLURM here: {', '.join(missing)} not found (Debian: apt-get install slurm-wlm)")
    with slurm_cluster.Cluster() as running:
        yield running
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(running.folder) in (process / "environ").read_bytes():
                left.append((process / "cmdline").read_bytes())
    assert not left, "processes of the cluster are still there"


@pytest.fixture
def on_cluster(shell, cluster):
    """on_cluster("table6.sh", ...) -> the numbers of the arrays that it hands over."""

    def start(*words, **environment):
        done = shell("slurm", *words, **cluster.environment, **environment)
        assert done.returncode == 0, done.stderr
        return [line.split(":")[0].removeprefix("job ") for line in done.stdout.splitlines()]

    return start


@pytest.mark.slow
def test_students_of_a_failed_teacher_are_cancelled(on_cluster, cluster, stand_in, tmp_path):
    python = stand_in('case "$*" in "train.py --model resnet56"*) exit 2 ;; *) echo "$1 $2 $3" >> $log ;; esac\n')
    first, students = on_cluster("study.sh", METHODS="KD baseline", SEEDS="0", PYTHON=python)
    cluster.wait(lambda: not cluster.ask("squeue", "--noheader"))
    states = [cluster.job(task)["JobState"] for task in (f"{first}_0", f"{first}_1", students)]
    assert states == ["FAILED", "COMPLETED", "CANCELLED"]
    assert (tmp_path / "log").read_text() == "train.py --model resnet20\n"


@pytest.mark.slow
def test_submitting_twice(on_cluster, cluster, stand_in, tmp_path):
    """Two runs at a time on each of two GPUs. The second submission starts when the first has ended."""
    python = stand_in('echo "start $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" >> $log\nsleep 1\n'
                      'echo "end $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" >> $log\n')
    table = {"METHODS": "baseline", "SEEDS": "0 1 2 3", "PYTHON": python, "PER_GPU": "2"}
    (first,), (second,) = on_cluster("study.sh", **table), on_cluster("study.sh", **table)
    assert cluster.job(second)["Dependency"].startswith(f"afterany:{first}")
    cluster.wait(lambda: not cluster.ask("squeue", "--noheader"))
    lines = (tmp_path / "log").read_text().splitlines()
    assert Counter(line.split()[0] for line in lines[:8]) == {"start": 4, "end": 4} and len(lines) == 16
    running, most = Counter(), Counter()
    for line in lines:
        word, node, gpu = line.split()
        running[node, gpu] += 1 if word == "start" else -1
        most |= running
    assert most == {("n1", "0"): 2, ("n2", "0"): 2}


@pytest.mark.slow
def test_a_table_with_a_teacher(on_cluster, cluster, shell, tmp_path):
    """The teacher gets a SIGTERM. It goes on, to the bits of a run that got none, and its student waits for it."""
    table = {"METHODS": "baseline KD", "SEEDS": "0", "DATA_DIR": str(make_images(tmp_path / "images", 46, 46))}
    flags = ["--train_size", "92", "--batch_size", "2", "--num_epochs", "3", "--device", "cpu", "--log_every", "1"]
    first, students = on_cluster("study.sh", "--", *flags, **table)
    line = shell("study", *flags, DRY_RUN="1", **table).stdout.splitlines()[0]
    argv = shlex.split(line)[2:]
    argv[argv.index("--save_dir") + 1] = str(tmp_path / "whole")
    whole = Training("train", argv, tmp_path / "whole")
    runs = tmp_path / "runs" / "folder"
    log = runs / "resnet56_seed0" / "train.log"
    cluster.wait(lambda: log.exists() and "epoch 1/3  step 2" in log.read_text(), 120)
    cluster.ask("scancel", "--signal=TERM", f"{first}_0")
    cluster.wait(lambda: cluster.job(f"{first}_0")["Restarts"] == "1", 60)
    assert "stopped by signal 15" in log.read_text() and cluster.job(students)["JobState"] == "PENDING"
    cluster.wait(lambda: not cluster.ask("squeue", "--noheader"), 300)
    tasks = [cluster.job(task) for task in (f"{first}_0", f"{first}_1", students)]
    assert [(task["JobState"], task["Restarts"]) for task in tasks] == [("COMPLETED", n) for n in "100"]
    assert whole.wait() == 0, whole.said()
    assert_same_run(runs / "resnet56_seed0", tmp_path / "whole" / "folder" / "resnet56_seed0")
    assert len(list(runs.rglob("summary.json"))) == 3
    done = shell("slurm", "study.sh", "--", *flags, **table, **cluster.environment)
    assert done.stdout == "all runs of study.sh are finished: nothing to submit\n"
