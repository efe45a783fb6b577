"""Every training command of README.md, as it stands there, one after another, on the digits and for one epoch."""

import json
import re
import shlex

import pytest
from conftest import ROOT

README = re.findall(r"^python (train\w*\.py.*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
COMMANDS = [command for command in README if "--resume" not in command]
QUICK = ["--num_epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")  # shared: a command uses what those before it made


def test_all_methods_are_there():
    assert len(COMMANDS) == 8 and len(set(COMMANDS)) == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder, script):
    name, *flags = shlex.split(command.replace("CIFAR10", "DIGITS"))
    before = set(folder.rglob("test_best_metrics.json"))
    done = script(name, *flags, *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    (made,) = set(folder.rglob("test_best_metrics.json")) - before
    best = json.loads(made.read_text())
    assert 0 < best["test_accTop5"] <= 100 and f"best epoch {best['epoch']}" in done.stdout
    assert "diversity" in done.stdout if "dist" in best else "network" in done.stdout


@pytest.mark.parametrize("command", [command for command in README if "--resume" in command])
def test_command_that_resumes(command, folder, script):
    """After the others: there is nothing left to do."""
    name, *flags = shlex.split(command.replace("CIFAR10", "DIGITS"))
    done = script(name, *flags, *QUICK, cwd=folder)
    assert done.returncode == 0 and "is complete: 1 epochs" in done.stdout


def test_network_based_groups(folder, script, image_folder):
    root = image_folder()
    for flags in (["train_GL.py"], ["train_one.py", "--ind"], ["train_one.py", "--avg"]):
        done = script(*flags, "--model", "resnet8", "--dataset", "folder", "--batch_size", "8", "--MulStu", *QUICK,
                      "--data_dir", root, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert {p.parent.name for p in (folder / "folder").glob("*-N/resnet8")} == {"OKDDip-N", "Ind-N", "CL-N"}


def test_a_lone_peer_runs_and_warns(folder, script):
    done = script("train_GL.py", "--model", "resnet8", "--dataset", "DIGITS", "--num_branches", "2", "--version",
                  "lone", *QUICK, cwd=folder)
    assert done.returncode == 0 and "nobody but itself" in done.stderr


def test_own_images(folder, script, image_folder):
    """Files of any size, two classes: colours that a network tells apart at once."""
    root = image_folder(train=40, test=10)
    done = script("train_GL.py", "--model", "resnet8", "--dataset", "folder", "--data_dir", root, "--num_epochs", "6",
                  "--batch_size", "16", "--length", "0", "--device", "cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    best = json.loads((folder / "folder" / "OKDDip" / "resnet8" / "test_best_metrics.json").read_text())
    assert best["stu_test_accTop1"] >= 90
