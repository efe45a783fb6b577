"""Finished runs are recognised by their records, before PyTorch is imported, and others are not."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from kill import FLAGS
from processes import Training, group

from training.folder import finished_run


@pytest.fixture(scope="module")
def command(images, tmp_path_factory):
    """The command of a run that is finished."""
    root = tmp_path_factory.mktemp("finished")
    argv = [*FLAGS, "--num_epochs", "1", "--version", "seed0", "--data_dir", str(images), "--save_dir", str(root),
            "--resume", "auto"]
    training = Training("train_one", argv, root)
    assert training.wait() == 0, training.said()
    return argv


@pytest.fixture
def folder(command):
    """Its folder. What a test changes there is put back."""
    (folder,) = Path(command[command.index("--save_dir") + 1]).glob("folder/ONE/resnet8_seed0")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    yield folder
    for path, content in before.items():
        path.write_bytes(content)


def run(script, *flags, **environment):
    """The script as a user runs it; -> the finished process, and the modules that it imported."""
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / f"{script}.py", *flags], capture_output=True,
                          text=True, env=os.environ | environment)
    return done, {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def recognised(argv, script="train_one"):
    """The folder, or None."""
    return finished_run(importlib.import_module(script).parse_args(argv), script)


@pytest.mark.parametrize("more", [
    [], ["--gpu_id", "3", "--num_workers", "0", "--log_every", "7"], ["--seed", "0", "--length", "80"]])
def test_a_finished_run(more, command, folder):
    """By all its flags, those that do not matter, and defaults; with --resume auto and by its folder."""
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for argv in ([*command, *more], [*command, *more, "--resume", str(folder)]):
        assert recognised(argv) == folder
    done, imported = run("train_one", *command, *more)
    assert done.returncode == 0 and done.stdout == f"{folder} is complete: 1 epochs (more with --num_epochs)\n"
    assert "training.folder" in imported and not {"torch", "numpy"} & imported
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_first_of_several_processes_says_it(command, folder):
    for environment, said in zip(group(2), (f"{folder} is complete: 1 epochs (more with --num_epochs)\n", ""),
                                 strict=True):
        done, _ = run("train_one", *command, **environment)
        assert done.returncode == 0 and done.stdout == said


@pytest.mark.parametrize("change", [
    ["--num_epochs", "2"], ["--lr", "0.3"], ["--seed", "1"], ["--resume", "x"], ["--version", "seed1"], ["--avg"],
    ["--T_model", "resnet8"]])
def test_other_flags(change, command, folder):
    script = "train_GL" if "--T_model" in change else "train_one"
    assert recognised([*command, *change], script) is None
    assert recognised([*command, "--resume", str(folder), *change], script) == (
        folder if change[0] == "--version" else None)
    args = importlib.import_module("train_one").parse_args(command)
    assert finished_run(args, "train_GL") is None  # another script, even if it has the same flags


def test_other_flags_are_refused_as_ever(command, folder):
    done, imported = run("train_one", *command, "--lr", "0.3")
    assert done.returncode == 2 and "--lr 0.02 there, 0.3 here" in done.stderr and "torch" in imported
    done, _ = run("train_one", *command, "--save_dir", "a" * 300)
    assert done.returncode == 2 and "name too long" in done.stderr and "Traceback" not in done.stderr


def write(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


@pytest.mark.parametrize("change", [
    lambda folder: write(folder, "summary.json", last={"epoch": 0}),
    lambda folder: write(folder, "parameters.json", num_epochs=2),  # it was raised, and the training stopped
    lambda folder: write(folder, "parameters.json", lr=0.3),
    lambda folder: write(folder, "parameters.json", hybrid_copy=True),  # a flag that is gone
    lambda folder: write(folder, "parameters.json", command=None),
    *(lambda folder, name=name, text=text: (folder / name).write_text(text)
      for name in ("summary.json", "parameters.json") for text in ("{}", "[]", "1", "", "{\"last\": 1")),
    *(lambda folder, name=name: (folder / name).unlink() for name in ("summary.json", "parameters.json", "last.pth"))])
def test_other_records(change, command, folder):
    assert recognised(command)
    change(folder)
    assert recognised(command) is None


def test_records_from_before_a_flag_was_there(command, folder):
    """And from when summary.json had a receipt."""
    parameters = json.loads((folder / "parameters.json").read_text())
    del parameters["train_size"], parameters["decoder"]
    (folder / "parameters.json").write_text(json.dumps(parameters | {"hybrid_copy": False}))
    write(folder, "summary.json", receipt="0" * 64)
    assert recognised(command) == folder
