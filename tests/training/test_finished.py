"""Finished runs are passed over in milliseconds, and only those that --resume auto would pass over, too."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from kill import FLAGS
from processes import Training

from runtime.checkpoints import load_checkpoint, serialise
from training import finished
from training.finished import finished_run
from training.lock import Lock


@pytest.fixture(scope="module")
def command(images, tmp_path_factory):
    """The command of a run that is finished."""
    root = tmp_path_factory.mktemp("finished")
    argv = [*FLAGS, "--num_epochs", "1", "--version", "seed0", "--data_dir", str(images), "--save_dir", str(root),
            "--resume", "auto"]
    training = Training("train_one", [*argv, "--gpu_id", "0"], root)
    assert training.wait() == 0, training.said()
    return ["train_one", *argv]


@pytest.fixture
def folder(command):
    """Its folder. What a test changes there is put back."""
    folder = next(finished.Path(command[command.index("--save_dir") + 1]).glob("folder/ONE/resnet8_seed0"))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    yield folder
    for path, content in before.items():
        path.write_bytes(content)


def test_a_finished_run(command, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert finished_run(command) == f"{folder} is complete: 1 epochs (more with --num_epochs)"
    assert finished_run([*command, "--gpu_id", "3"]) == finished_run(command)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    training = Training("train_one", command[1:], folder / "B")  # what --resume auto prints
    assert training.wait() == 0 and training.said().strip() == finished_run(command)


@pytest.mark.parametrize("change", [
    ["--num_epochs", "2"], ["--lr", "0.3"], ["--overwrite"], ["--resume", "x"], ["--version", "seed1"], ["--avg"]])
def test_other_commands_are_not_answered(change, command):
    assert finished_run([*command, *change]) is None


def test_another_script_is_not_answered(command):
    assert finished_run(["train_GL", *command[1:]]) is None


def edit_checkpoint(folder):
    state = load_checkpoint(folder / "last.pth")
    state["flags"]["lr"] = 0.3
    (folder / "last.pth").write_bytes(serialise(state))


def edit_summary(folder):
    summary = json.loads((folder / "summary.json").read_text())
    summary["last"]["test_accTop1"] += 1
    (folder / "summary.json").write_text(json.dumps(summary))


def flip_a_bit(folder):
    content = bytearray((folder / "last.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "last.pth").write_bytes(content)


@pytest.mark.parametrize("change", [
    edit_checkpoint, edit_summary, flip_a_bit, lambda folder: (folder / "last.pth").unlink(),
    *(lambda folder, text=text: (folder / "summary.json").write_text(text) for text in ("{}", "[]", "")),
    lambda folder: (folder / "summary.json").unlink()])
def test_a_changed_run_is_not_answered(change, command, folder):
    assert finished_run(command)
    change(folder)
    assert finished_run(command) is None


def test_other_code_is_not_answered(command, monkeypatch, tmp_path):
    digest = finished.code_digest()
    assert digest == finished.code_digest()
    monkeypatch.setattr(finished, "code_digest", lambda: "other")
    assert finished_run(command) is None
    monkeypatch.undo()
    monkeypatch.setattr(finished, "ROOT", tmp_path)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "flags.py").write_text("LATER_FLAGS = {}")
    one = finished.code_digest()
    (tmp_path / "training" / "flags.py").write_text("LATER_FLAGS = {1}")
    assert len({digest, one, finished.code_digest()}) == 3


def test_a_run_that_is_being_trained_is_not_answered(command, folder):
    code = f"import time; from training.lock import Lock; from pathlib import Path; Lock(Path({str(folder)!r})); " \
           "print('locked', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code.replace("Lock(Path", "lock = Lock(Path")], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    assert finished_run(command) is None
    holder.kill()
    holder.wait()
    assert finished_run(command)
    Lock(folder).release()  # nothing is left locked


def test_a_finished_run_of_different_networks(images, tmp_path):
    """Its folder has the names of --models. No other command about them is answered."""
    flags = ["--models", "resnet8", "resnet14", *FLAGS[2:], "--num_epochs", "1", "--version", "seed0", "--data_dir",
             str(images), "--save_dir", str(tmp_path), "--resume", "auto"]
    training = Training("train_KDCL", flags, tmp_path)
    assert training.wait() == 0, training.said()
    assert finished_run(["train_KDCL", *flags]).startswith(f"{tmp_path}/folder/KDCL/resnet8+resnet14_seed0 is complete")
    for other in (["--models", "resnet14", "resnet8", *flags[3:]], [*flags, "--lr", "0.3"], [*flags, "--models"]):
        assert finished_run(["train_KDCL", *other]) is None
