"""Killed processes, full disks, damaged files: a whole checkpoint is always there."""

import json
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from kill import WORKERS, kill_and_compare
from processes import Training, assert_best_agrees, assert_same_run, epochs, load

import train_GL
from runtime import checkpoints
from runtime.device import seed_everything
from runtime.errors import UserError
from training.checkpoint import FORMAT, Checkpoints, random_state, set_random_state
from training.metrics import RunningSums


@pytest.mark.parametrize(("method", "workers"), [
    *(("OKDDip", workers) for workers in WORKERS), ("ONE", 2), ("KD", 0),
    ("FFL", 0), ("PCL", 2), ("KDCL-general", 0), ("OKDPH-dirichlet", 2)])
def test_killed_at_random_moments(method, workers, images, teacher, tmp_path):
    kill_and_compare(method, workers, images, teacher, tmp_path, kills=3)


@pytest.fixture(scope="module")
def two_then_three(flags, tmp_path_factory):
    """num_epochs -> the folder of a run that was not killed: two epochs, and the same after a third."""
    root, folders = tmp_path_factory.mktemp("two_then_three"), {}
    for num_epochs in ("2", "3"):
        training = Training("train_GL", [*flags, "--resume", "auto", "--save_dir", root, "--num_epochs", num_epochs],
                            root)
        assert training.wait() == 0, training.said()
        folders[num_epochs] = shutil.copytree(root / "folder" / "OKDDip" / "resnet8", root / num_epochs)
    return folders


@pytest.mark.parametrize("place", range(1, 11))
def test_killed_before_each_rename(place, flags, two_then_three, tmp_path):
    """Of all files, over two epochs; then again, over a third: nothing is missing once it has gone on to its end."""
    flags = [*flags, "--resume", "auto", "--save_dir", tmp_path]
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    for num_epochs in ("2", "3"):
        training = Training("train_GL", [*flags, "--num_epochs", num_epochs], tmp_path, die_at=place)
        assert training.wait() in (-signal.SIGKILL, 0), training.said()
        training = Training("train_GL", [*flags, "--num_epochs", num_epochs], tmp_path)
        assert training.wait() == 0, training.said()
        assert_same_run(folder, two_then_three[num_epochs])
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["last"]["epoch"] == int(num_epochs)


def test_best_is_written_again_where_a_kill_came_between_the_renames(flags, begun, whole):
    """last.pth is there, best.pth is not yet."""
    (begun / "best.pth").unlink()
    (begun / "test_best_metrics.json").write_text("{}")
    train_GL.main([*flags, "--resume", str(begun), "--num_epochs", "1"])
    assert_best_agrees(begun)


@pytest.mark.parametrize("share", [0.0005, 0.001, 0.01, 0.3, 0.6, 0.99, 0.9999])
def test_a_disk_that_fills_leaves_the_old_checkpoint(share, flags, begun):
    """Files may not grow beyond a share of a checkpoint: as a full disk, it fails the write."""
    before = {name: (begun / name).read_bytes() for name in ("last.pth", "best.pth", "test_best_metrics.json")}
    training = Training("train_GL", [*flags, "--resume", begun], begun.parents[2],
                        file_size=int(share * len(before["last.pth"])))
    assert training.wait() == 2
    assert {name: (begun / name).read_bytes() for name in before} == before and epochs(begun) == 1
    assert not list(begun.glob("*.tmp"))
    assert training.said().count("cannot be saved") == 1 and "Traceback" not in training.said()


def test_a_folder_that_vanishes_is_named(flags, tmp_path):
    folder = tmp_path / "folder" / "OKDDip" / "resnet8"
    training = Training("train_GL", [*flags, "--num_epochs", "100", "--save_dir", tmp_path], tmp_path)
    training.until(lambda: "epoch 1/100  loss" in training.said())
    shutil.rmtree(folder.rename(tmp_path / "gone"))
    assert training.wait() == 2
    assert "No such file or directory" in training.said() and "Traceback" not in training.said()


def test_a_damaged_checkpoint_gives_the_right_weights_or_a_sentence(begun, tmp_path):
    """Cut at 50 lengths, and with each of 50 bytes flipped."""
    whole, rng = (begun / "last.pth").read_bytes(), random.Random(0)
    right = checkpoints.digest(load(begun)["state_dict"])
    damaged = [whole[:rng.randrange(len(whole))] for _ in range(50)]
    for place in [*(rng.randrange(len(whole)) for _ in range(40)), *(-rng.randrange(1, 3000) for _ in range(10))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        (tmp_path / "damaged.pth").write_bytes(content)
        try:
            weights = checkpoints.load_checkpoint(tmp_path / "damaged.pth")["state_dict"]
        except UserError as error:
            refused += "damaged" in str(error)
        else:
            assert checkpoints.digest(weights) == right
    assert refused >= 50  # a cut one never passes


# --- without a training


class Trained:
    """A stand-in for a Trainer: its state is a number."""

    device = torch.device("cpu")

    def __init__(self):
        self.value, self.sums = 1, RunningSums(self.device)

    def state_dict(self):
        return {"state_dict": {"value": self.value}, "tally": self.sums.state_dict()}

    def load_state_dict(self, state):
        self.value = state["state_dict"]["value"]
        self.sums.load_state_dict(state["tally"])


def record(epoch, accuracy):
    return {"epoch": epoch, "accuracy": accuracy, "other": -accuracy}


def made_up(folder, *accuracies):
    history = [record(e, a) for e, a in enumerate(accuracies, 1)]
    return Checkpoints(folder, Trained(), history, "accuracy", {"flags": {"lr": 0.1}})


@pytest.mark.parametrize(("accuracies", "best"), [((50, 60, 40), 2), ((50, 60, 60), 3), ((60, 50), 1), ((1,), 1)])
def test_the_best_epoch(accuracies, best, tmp_path):
    """The highest accuracy; of two equal ones the later."""
    assert made_up(tmp_path, *accuracies).best() == record(best, accuracies[best - 1])


def test_what_is_saved(tmp_path):
    made_up(tmp_path, 50, 60, 40).save()
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth"}
    content = checkpoints.load_checkpoint(tmp_path / "last.pth")
    assert content["format"] == FORMAT and content["flags"] == {"lr": 0.1} and len(content["random"]) == 1
    assert content["history"] == [record(1, 50), record(2, 60), record(3, 40)] and content["best"] == record(2, 60)
    saved = made_up(tmp_path, 50, 60)
    saved.save(best=True)
    assert (tmp_path / "last.pth").read_bytes() == (tmp_path / "best.pth").read_bytes()
    assert json.loads((tmp_path / "test_best_metrics.json").read_text()) == record(2, 60)
    assert made_up(tmp_path / "x").state()["best"] is None


def test_which_best_epoch_is_on_disk(tmp_path):
    saved = made_up(tmp_path, 50, 40, 60)
    assert saved.saved_best() is None and made_up(tmp_path).saved_best() is None
    saved.save(best=True)
    assert saved.saved_best() == record(3, 60)
    assert made_up(tmp_path, 50, 40, 60, 30).saved_best() == record(3, 60)
    assert made_up(tmp_path, 50, 40, 60, 70).saved_best() is None  # it holds an earlier one
    assert made_up(tmp_path).saved_best() is None
    (tmp_path / "best.pth").write_bytes((tmp_path / "best.pth").read_bytes()[:-100])
    assert saved.saved_best() is None


def drawn():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_the_random_numbers_go_on(tmp_path):
    """Python's, NumPy's (also in the middle of a pair of normal ones) and PyTorch's."""
    seed_everything(5)
    np.random.randn()
    saved = made_up(tmp_path, 50)
    saved.save(best=True)
    expected = drawn()
    seed_everything(6)
    assert drawn() != expected
    again = made_up(tmp_path, 50)
    again.trainer.value = 0
    again.restore(checkpoints.load_checkpoint(tmp_path / "last.pth"))
    assert drawn() == expected and again.trainer.value == 1


def test_the_random_numbers_of_a_gpu_go_on(monkeypatch):
    """Of the run's own GPU. A checkpoint of a CPU has none, and a CPU does not look for them."""
    restored, gpu, cpu = [], torch.device("cuda", 1), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"state of {device}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *state_and_device: restored.append(state_and_device))
    for saved, device in ((gpu, gpu), (cpu, gpu), (gpu, cpu), (cpu, cpu)):
        set_random_state(random_state(saved), device)
    assert restored == [("state of cuda:1", gpu)]


def test_with_another_number_of_processes_the_random_numbers_start_anew(tmp_path):
    saved = made_up(tmp_path, 50)
    saved.save(best=True)
    content = checkpoints.load_checkpoint(tmp_path / "last.pth")
    content["random"] *= 2
    seed_everything(6)
    expected = drawn()
    seed_everything(6)
    made_up(tmp_path, 50).restore(content)
    assert drawn() == expected


@pytest.mark.parametrize(("accuracies", "steps", "written"), [
    ((50, 40, 60), 0, True), ((40, 60, 50), 0, False), ((50, 40, 60), 1, False), ((), 0, False)])
def test_a_missing_best_is_written_if_this_is_its_epoch(accuracies, steps, written, tmp_path, caplog):
    """Not in the middle of the next epoch, and not after it: then a line says so."""
    saved = made_up(tmp_path, *accuracies)
    for _ in range(steps):
        saved.trainer.sums.add(4, terms=torch.ones(3))
    saved.save()
    saved.restore(checkpoints.load_checkpoint(tmp_path / "last.pth"))
    assert (tmp_path / "best.pth").exists() == written
    said = f"best.pth is missing or does not hold epoch {accuracies.index(60) + 1}" if accuracies else "best.pth"
    assert (said in caplog.text) == (not written and bool(accuracies))


def test_a_best_that_is_there_is_left_alone(tmp_path, caplog):
    made_up(tmp_path, 40, 60).save(best=True)
    before = (tmp_path / "best.pth").read_bytes()
    for accuracies in ((40, 60), (40, 60, 50)):
        later = made_up(tmp_path, *accuracies)
        later.save()
        later.restore(checkpoints.load_checkpoint(tmp_path / "last.pth"))
        assert (tmp_path / "best.pth").read_bytes() == before and caplog.text == ""
