"""The scripts of the paper's tables and figures: the command lines that they print."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache

import pytest
from conftest import ROOT

from methods import METHODS
from training.folder import changed

SEVEN = ["train.py", "train_one.py --ind", "train_DML.py", "train_one.py --avg --bpscale", "train_one.py",
         "train_GL.py --MulStu", "train_GL.py"]
RUNS = {"table1": 105, "table2": 105, "table3": 18, "table4": 36, "table5": 18, "table6": 24, "figure3": 54,
           "figure4": 12, "study": 65, "later": 240}  # script -> number of runs


@cache
def dry_run(name, *flags, **environment):
    """dry_run("table2", SEEDS="0") -> the words of each command line, from the training script on."""
    environment = {"DRY_RUN": "1", "SAVE_DIR": "runs", "PYTHON": sys.executable, **environment}
    done = subprocess.run(["sh", ROOT / "scripts" / f"{name}.sh", *flags], capture_output=True, text=True,
                          env=os.environ | environment)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(line.startswith("python train") for line in lines) and len(set(lines)) == len(lines)
    return [shlex.split(line)[1:] for line in lines]


def flag(command, name):
    return command[command.index(name) + 1] if name in command else None


def test_table2_is_five_networks_seven_methods_three_seeds():
    commands = dry_run("table2")
    cells = {(flag(c, "--model"), flag(c, "--seed"), tuple(c[:c.index("--model")])) for c in commands}
    branch_based = {"train_one.py --ind", "train_one.py --avg --bpscale", "train_one.py", "train_GL.py"}
    assert cells == {
        (model, str(seed), tuple(shlex.split(m + " --dropout 0.5" * (model == "vgg16" and m in branch_based))))
        for model in ("densenetd40k12", "resnet32", "vgg16", "resnet110", "wide_resnet20_8") for seed in range(3)
        for m in SEVEN}
    assert all(flag(c, "--dataset") == "CIFAR100" and flag(c, "--resume") == "auto" for c in commands)
    assert len({flag(c, "--version") for c in commands}) == 3  # a folder for each seed


@pytest.mark.parametrize("name", RUNS)
def test_number_of_runs(name):
    """Each of them is of a method in methods.py."""
    known = [(entry.module + ".py", set(entry.flags.split())) for entry in METHODS.values()]
    commands = dry_run(name)
    assert len(commands) == RUNS[name]
    assert all(any(script == c[0] and chosen <= set(c) for script, chosen in known) for c in commands)


def test_later_is_the_table_of_pcl_and_okdph():
    commands = dry_run("later", SEEDS="0")
    assert {c[0] for c in commands} == {"train_DML.py", "train_one.py", "train_GL.py", "train_FFL.py", "train_KDCL.py",
                                        "train_PCL.py", "train_OKDPH.py"}
    assert len({(flag(c, "--model"), flag(c, "--dataset")) for c in commands}) == 10
    assert all(flag(c, "--num_branches") == "3" and flag(c, "--version") == "m3_seed0" for c in commands)
    assert not any("--aggregation" in c or "--target" in c for c in commands)
    assert {flag(c, "--dropout") for c in commands} <= {None, "0"}  # one recipe for all


OKDPH = """vgg16 CIFAR10 0.3 0.3 1 1_epoch; vgg16 CIFAR100 0.3 0.3 1 1_epoch
resnet32 CIFAR10 0.8 0.8 0.5 1_epoch; resnet32 CIFAR100 1 0.5 1 5_batch
resnet110 CIFAR10 0.8 0.8 0.5 5_batch; resnet110 CIFAR100 0.8 0.8 0.5 5_batch
densenetd40k12 CIFAR10 0.8 0.8 0.5 5_batch; densenetd40k12 CIFAR100 1 0.5 0.5 5_batch
wide_resnet20_8 CIFAR10 0.8 0.8 0.5 1_epoch; wide_resnet20_8 CIFAR100 0.5 0.5 0.5 5_batch"""


def test_the_settings_of_okdphs_authors():
    """For each network and data set; elsewhere the defaults."""
    names = ("--model", "--dataset", "--omega", "--beta", "--gamma", "--interval")
    commands = dry_run("later", SEEDS="0", METHODS="OKDPH")
    assert {" ".join(flag(c, name) for name in names) for c in commands} == {*re.split("; |\n", OKDPH)}
    others = [*dry_run("later", METHODS="ONE PCL"), *dry_run("later", METHODS="OKDPH", MODELS="resnet20")]
    assert not any("--omega" in c or "--gamma" in c for c in others)
    assert all(" ".join(flag(c, name) for name in names[2:]) == "1 0.5 1 5_batch"
               for c in dry_run("cifar100") if c[0] == "train_OKDPH.py")


def test_the_recipe_of_table3_and_the_cells_of_the_tables():
    recipe = " --dataset imagenet --num_epochs 90 --batch_size 256 --wd 1e-4 --schedule 30 60 --seed "
    assert all(recipe in shlex.join(c) for c in dry_run("table3"))
    cells = {"table1": "CIFAR10 densenetd40k12 resnet110 resnet32 vgg16 wide_resnet20_8", "table3": "imagenet resnet34",
             "table4": "CIFAR100 resnet110 resnet32 vgg16", "table5": "CIFAR100 resnet32",
             "figure3": "CIFAR100 resnet32", "figure4": "CIFAR100 wide_resnet20_8"}
    for name, cell in cells.items():
        assert " ".join(sorted({flag(c, f) for c in dry_run(name) for f in ("--dataset", "--model")})) == cell, name


@pytest.mark.parametrize(("study", "complete", "sizes"), [("study", True, ""),
                                                          ("cifar100", False, "10000x60 2500x150")])
def test_the_committed_results_are_runs_of_the_study(study, complete, sizes):
    """Each of them once, with all flags of its group, so that more seeds join it."""
    planned = [(script, vars(importlib.import_module(script.removesuffix(".py")).parse_args(flags)))
               for script, *flags in dry_run(study, SIZES=sizes)]
    records, found = [*(ROOT / "results" / study).rglob("parameters.json")], []
    for recorded in (json.loads(path.read_text()) for path in records):
        found += [i for i, (script, made) in enumerate(planned) if script in recorded["command"].split()
                  and recorded["num_epochs"] == made["num_epochs"] and not changed(recorded, made)]
    assert len(found) == len(set(found)) == len(records)
    assert len(found) == len(planned) or not complete


def test_a_part_of_the_study():
    """Each method has its own number of seeds."""
    assert [flag(c, "--seed") for c in dry_run("study", METHODS="DML Ind")] == [*"01234012"]
    assert [flag(c, "--seed") for c in dry_run("study", METHODS="DML Ind", SEEDS="7")] == ["7", "7"]


def test_table5_and_table6():
    kinds = {flag(c, "--aggregation") or ("one level" if "--no_leader" in c else "full") for c in dry_run("table5")}
    assert kinds == {"random", "entropy", "mean", "symmetric", "one level", "full"}
    students = [c for c in dry_run("table6") if "--T_model" in c]
    teachers = {f"{flag(c, '--save_dir')}/{flag(c, '--dataset')}/{flag(c, '--model')}_{flag(c, '--version')}"
                for c in dry_run("table6") if c[0] == "train.py"}
    assert len(students) == 12 and {flag(c, "--T_model_path") for c in students} == teachers


def test_tables_share_their_runs():
    two = {tuple(c) for c in dry_run("table2")}
    assert sum(tuple(c) in two for c in dry_run("table4")) == 27
    assert sum(tuple(c) in two for c in dry_run("figure3")) == 9
    assert all(tuple(c) in two for c in dry_run("figure4"))
    sizes = [c for c in dry_run("figure3") if tuple(c) not in two]
    assert {flag(c, "--num_branches") for c in sizes} == set("35678")
    assert all(flag(c, "--version") == f"m{flag(c, '--num_branches')}_seed{flag(c, '--seed')}" for c in sizes)


def test_the_environment_and_flags():
    (command,) = dry_run("figure4", "--amp", "bf16", "--data_dir", "with space", SEEDS="7", EPOCHS="5", DATA_DIR="it's",
                        MODELS="resnet8", DATASETS="DIGITS", LENGTH="2")[:1]
    assert flag(command, "--seed") == "7" and flag(command, "--num_epochs") == "5" and flag(command, "--length") == "2"
    assert flag(command, "--data_dir") == "it's" and flag(command, "--model") == "resnet8"
    assert command[-4:] == ["--amp", "bf16", "--data_dir", "with space"]


def test_lengths_do_not_share_a_folder():
    places = {flag(dry_run("table5", EPOCHS=epochs, SAVE_DIR="")[0], "--save_dir") for epochs in ("", "1", "300")}
    assert len(places) == 3


@pytest.mark.parametrize(("script", "variables", "said"), [
    ("table1", {"SEEDS": " ", "DRY_RUN": "1"}, "no run: .*SEEDS"), ("study", {"SEEDS": " "}, "no run: .*SEEDS"),
    ("cifar100", {"SEEDS": " "}, "no run: .*SEEDS"), ("figure3", {"BRANCHES": " ", "DRY_RUN": "1"}, ".*BRANCHES"),
    ("table5", {"SAVE_DIR": "a\nb"}, "SAVE_DIR and DATA_DIR must not contain a line break"),
    ("study", {"METHODS": "KD:--T_model:x"}, "a teacher is named with .KD and T_MODEL: leave out --T_model"),
    ("study", {"METHODS": "OKDip"}, "unknown method OKDip: known are baseline, KD")])
def test_a_mistake_is_one_line(shell, script, variables, said):
    done = shell(script, **variables)
    assert done.returncode == 2 and done.stdout == "" and re.fullmatch(f"error: {said}.*\n", done.stderr)


@pytest.mark.parametrize("script", ["table3", "figure3", "study", "later"])
def test_methods_are_chosen_in_every_script(script):
    """Once each, also where the group sizes differ; a teacher is trained for its students, before them."""
    one = {"SEEDS": "0", "MODELS": "resnet20", "DATASETS": "CIFAR10"}
    commands = dry_run(script, METHODS="baseline KD OKDDip+KD:--aggregation:random", **one)
    assert [c[0] for c in commands if c[0] != "train_GL.py"] == ["train.py", "train.py", "train_kd.py"]
    place = f"{flag(commands[0], '--dataset')}/{flag(commands[0], '--model')}_{flag(commands[0], '--version')}"
    students = [c for c in commands if "--T_model_path" in c]
    assert students and all(flag(c, "--T_model_path").endswith(place) for c in students)
    assert all(flag(c, "--aggregation") == "random" for c in commands if c[0] == "train_GL.py")
    for script, *flags in commands:
        importlib.import_module(script.removesuffix(".py")).parse_args(flags)


def test_a_teacher_that_is_also_a_baseline_is_listed_once():
    commands = dry_run("table6", METHODS="baseline KD", MODELS="resnet20 resnet110", SEEDS="0", DATASETS="CIFAR10")
    assert [(c[0], flag(c, "--model")) for c in commands] == [
        ("train.py", "resnet110"), ("train.py", "resnet20"), ("train_kd.py", "resnet20"), ("train_kd.py", "resnet110")]


@pytest.mark.parametrize("script", [*RUNS, "slurm"])
def test_help_of_a_script(shell, script):
    """Its own comment and that of runs.sh, in which every variable is."""
    done = shell(script, "--amp", "bf16", "--help")
    assert done.returncode == 0 and done.stderr == "" and done.stdout == shell(script, "-h").stdout
    own, common = done.stdout.split("\n\nThe other scripts source this file.")
    first = (ROOT / "scripts" / f"{script}.sh").read_text().splitlines()[1]
    assert own.startswith(first.removeprefix("# ")) and "#" not in done.stdout.replace("    # different", "")
    for variable in ("SEEDS", "EPOCHS", "METHODS", "MODELS", "DATASETS", "LENGTH", "T_MODEL", "DRY_RUN", "GPUS"):
        assert variable in common


def test_groups_of_different_networks():
    """Without the study's --model; the training accepts the command."""
    methods = "KDCL:--models:resnet8:vgg16 Ind:--MulStu:--models:resnet8:resnet14"
    found = [(script, importlib.import_module(script.removesuffix(".py")).parse_args(flags).model)
             for script, *flags in dry_run("study", METHODS=methods, SEEDS="0")]
    assert found == [("train_KDCL.py", "resnet8+vgg16"), ("train_one.py", "resnet8+resnet14")]
    (_, *flags), = dry_run("table2", METHODS="OKDDip", SEEDS="0", MODELS="vgg_mine.py:Net")  # not one of ours
    assert "vgg_mine.py:Net" in flags and "--dropout" not in flags


def test_a_teacher_has_the_folder_in_which_it_was_trained():
    """Also one from a Python file, and one for each size of the study."""
    small = {"METHODS": "KD", "SEEDS": "0", "DATASETS": "CIFAR10", "T_MODEL": "nets/small.py:Net"}
    (_, student), sizes = dry_run("table6", **small), dry_run("cifar100", SIZES="9x4 8x2", METHODS="KD", SEEDS="0")
    assert flag(student, "--T_model_path") == "runs/CIFAR10/small-Net_seed0"
    assert {flag(c, "--T_model_path") for c in sizes[2:]} == {
        f"{flag(c, '--save_dir')}/folder/resnet110_seed0" for c in sizes[:2]} and len(sizes) == 4


@pytest.mark.parametrize(("script", "method", "name", "value"), [
    ("cifar100", "OKDDip:--amp:off", "amp", "off"), ("study", "OKDDip:--length:60", "length", 60),
    ("later", "OKDPH:--num_branches:2", "num_branches", 2), ("later", "OKDPH:--gamma:0.1", "gamma", 0.1),
    ("table2", "ONE:--dropout:0.2", "dropout", 0.2)])
def test_flags_of_a_method_win(script, method, name, value):
    """Against those of the script. A group of another size has another folder."""
    (file, *flags), *_ = dry_run(script, METHODS=method, SEEDS="0", MODELS="vgg16", SAVE_DIR="/4/runs")
    args = vars(importlib.import_module(file.removesuffix(".py")).parse_args(flags))
    students = {"later": 3}.get(script, 4) if name != "num_branches" else value
    assert args[name] == value and args["num_branches"] == students
    assert args["version"] == ("seed0" if students == 4 else f"m{students}_seed0")


def test_only_groups_have_a_size():
    assert not any("--num_branches" in c for c in dry_run("later", SAVE_DIR="/group/a", METHODS="KD", SEEDS="0"))
    groups = dry_run("figure3", BRANCHES="4 40", METHODS="OKDDip+KD", SEEDS="0", SAVE_DIR="/4/a")[1:]
    assert [flag(c, "--num_branches") for c in groups] == [None, "40"]


def test_no_clone_has_line_ends_of_windows(tmp_path):
    """Even with core.autocrlf=true: shells read no CRLF, and digests of weights are of the committed bytes."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    asked = subprocess.run(["git", "-C", tmp_path, "check-attr", "text", "eol", "--", "scripts/runs.sh",
                            "results/x.safetensors"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert asked == ["scripts/runs.sh: text: auto", "scripts/runs.sh: eol: lf", "results/x.safetensors: text: unset",
                     "results/x.safetensors: eol: lf"]


def test_without_python_the_commands_are_still_printed(shell, few_tools):
    assert dry_run("table5", PATH=few_tools, PYTHON="") == dry_run("table5")
    done = shell("table5", PATH=few_tools, PYTHON="")
    assert done.returncode == 127 and done.stderr.startswith("error: python not found")


@pytest.mark.parametrize("program, number", [("xargs", 1), ("parallel", 3)])
def test_other_queues_take_the_lines(shell, stand_in, tmp_path, program, number):
    """The commands of the docs run every line once, with any path, students last."""
    if not shutil.which(program):
        pytest.skip(f"{program} not found")
    python = stand_in('line=; for word; do line="$line[$word] "; done\n'
                      'printf "%s\\n" "$line${CUDA_VISIBLE_DEVICES-}" >> $log\n')
    (tmp_path / "python").symlink_to(python)
    variables = {"SEEDS": "0", "SAVE_DIR": f"{tmp_path}/it's {{}} $HOME", "DATA_DIR": 'two  "words"'}
    environment = {**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    page = (ROOT / "docs" / "reproducing.md").read_text().splitlines()
    commands = [line.partition("    #")[0] for line in page if f"| {program} " in line]
    assert len(commands) == number
    for command in commands:
        subprocess.run(["sh", "-c", command], cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL)
    lines = [line for name in ("table5", "table6")[:number]
             for line in shell(name, DRY_RUN="1", **variables).stdout.splitlines()]
    ran = [line.rpartition(" ") for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(words for words, *_ in ran) == sorted(
        " ".join(f"[{word}]" for word in shlex.split(line)[1:]) for line in lines)
    if program == "parallel":
        assert {gpu for *_, gpu in ran[:6]} <= set("0123")
        assert [words.count("[--T_model_path]") for words, *_ in ran[6:]] == [0] * 4 + [1] * 4
