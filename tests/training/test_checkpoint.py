"""What checkpoints hold, and which may be continued: the rules, without a training."""

import json
import random
from argparse import Namespace

import numpy as np
import pytest
import torch

from runtime import checkpoints
from runtime.device import seed_everything
from runtime.errors import Complete, UserError
from training.checkpoint import FORMAT, OLD_NAMES, Checkpoints, load_to_resume
from training.metrics import RunningSums

# --- writing and restoring


class Counter:
    """A stand-in for a Stepper: its state is a number."""

    device = torch.device("cpu")

    def __init__(self):
        self.value, self.sums = 1, RunningSums(self.device)

    def state_dict(self):
        return {"state_dict": {"value": self.value}, "sums": self.sums.state_dict()}

    def load_state_dict(self, state):
        self.value = state["state_dict"]["value"]
        self.sums.load_state_dict(state["sums"])


def record(epoch, accuracy):
    return {"epoch": epoch, "accuracy": accuracy, "other": -accuracy}


def made_up(folder, *accuracies):
    history = [record(e, a) for e, a in enumerate(accuracies, 1)]
    return Checkpoints(folder, Counter(), history, "accuracy", {"flags": {"lr": 0.1}})


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
    made_up(tmp_path, 50, 60).save(best=True)
    assert (tmp_path / "last.pth").read_bytes() == (tmp_path / "best.pth").read_bytes()
    assert json.loads((tmp_path / "test_best_metrics.json").read_text()) == record(2, 60)
    assert made_up(tmp_path / "x").state()["best"] is None


@pytest.mark.parametrize(("there", "accuracies", "steps", "written"), [
    ("", (50, 40, 60), 0, True), ("earlier", (50, 40, 60), 0, True), ("damaged", (50, 40, 60), 0, True),
    ("", (40, 60, 50), 0, False), ("", (50, 40, 60), 1, False), ("", (), 0, False)])
def test_a_missing_best_is_written_if_this_is_its_epoch(there, accuracies, steps, written, tmp_path, caplog):
    """After a kill between two renames. Not in the middle of the next epoch, and not after it: then a line says so."""
    if there:
        made_up(tmp_path, *(accuracies if there == "damaged" else accuracies[:1])).save(best=True)
    if there == "damaged":
        (tmp_path / "best.pth").write_bytes((tmp_path / "best.pth").read_bytes()[:-100])
    saved = made_up(tmp_path, *accuracies)
    for _ in range(steps):
        saved.stepper.sums.add(4, terms=torch.ones(3))
    saved.save()
    saved.restore(checkpoints.load_checkpoint(tmp_path / "last.pth"))
    assert (tmp_path / "best.pth").exists() == written
    assert not written or checkpoints.load_checkpoint(tmp_path / "best.pth")["history"][-1] == record(3, 60)
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


# --- random numbers


def drawn():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_the_random_numbers_go_on(tmp_path):
    """Python's, NumPy's (also in the middle of a pair of normal ones) and PyTorch's."""
    seed_everything(5)
    np.random.randn()
    made_up(tmp_path, 50).save(best=True)
    expected = drawn()
    seed_everything(6)
    assert drawn() != expected
    again = made_up(tmp_path, 50)
    again.stepper.value = 0
    again.restore(checkpoints.load_checkpoint(tmp_path / "last.pth"))
    assert drawn() == expected and again.stepper.value == 1


def test_with_another_number_of_processes_the_random_numbers_start_anew(tmp_path):
    made_up(tmp_path, 50).save(best=True)
    content = checkpoints.load_checkpoint(tmp_path / "last.pth")
    content["random"] *= 2
    seed_everything(6)
    expected = drawn()
    seed_everything(6)
    made_up(tmp_path, 50).restore(content)
    assert drawn() == expected


# --- which checkpoint may be continued

DICTIONARIES = ("flags", "unchangeable", "state_dict", "optimizer", "scheduler", "scaler", "sums")
LISTS = ("history", "random", "starts")
FLAGS_OF = {"cosine": False, "resume": "auto", "num_epochs": 2, "lr": 0.1, "seed": 0, "device": "cpu",
            "save_dir": "runs"}
HISTORY = [{"epoch": 1, "test_accTop1": 50.0}, {"epoch": 2, "test_accTop1": 60.0}]


def saved(folder, history=HISTORY, name="last.pth", method="ONE", **changes):
    """A checkpoint with all parts, and the summary of a training that has ended with it."""
    content = dict.fromkeys(DICTIONARIES, {}) | dict.fromkeys(LISTS, []) | {
        "format": FORMAT, "history": history, "flags": {"method": method, **FLAGS_OF}} | changes
    path = folder / name
    path.write_bytes(checkpoints.serialise({part: value for part, value in content.items() if value is not None}))
    (folder / "summary.json").write_text(json.dumps({"last": history[-1] if history else None}))
    return path


def asked(path, folder, method="ONE", **flags):
    return load_to_resume(path, Namespace(**FLAGS_OF | flags), method, folder)


@pytest.mark.parametrize("part", ["format", *DICTIONARIES, *LISTS])
@pytest.mark.parametrize("value", [None, "of another type"])
def test_a_missing_part_is_named(part, value, tmp_path):
    said = "checkpoint format of another type" if (part, value) == ("format", "of another type") else (
        f"cannot be resumed: it has no {part}")
    with pytest.raises(UserError, match=said):
        asked(saved(tmp_path, **{part: value}), tmp_path)


@pytest.mark.parametrize(("changes", "said"), [
    ({"method": "Ind"}, "--method ONE there, Ind here"), ({"alpha": 1.0}, "--alpha None there, 1.0 here"),
    ({"num_epochs": 1}, "was 2: it can be raised, not lowered"),
    ({"decoder": "fast"}, "--decoder pil there, fast here"),
    ({"lr": 0.2, "seed": 1}, "--lr 0.1 there, 0.2 here; --seed 0 there, 1 here")])
def test_what_may_not_change(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        asked(saved(tmp_path), tmp_path, **changes)


def test_a_flag_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="was started with --hybrid_copy, which this code no longer has"):
        asked(saved(tmp_path, flags={"method": "ONE", **FLAGS_OF, "hybrid_copy": True}), tmp_path, num_epochs=3)


def test_what_may_change(tmp_path):
    """Free flags, more epochs, a later flag at its default; and the names of entries, in files of older code."""
    path = saved(tmp_path)
    found = asked(path, tmp_path, num_epochs=3, device="cuda", save_dir="elsewhere", resume=str(path), train_size=0)
    assert found["history"] == HISTORY
    older = saved(tmp_path, method="", **dict.fromkeys(OLD_NAMES, {"a": 1}), **dict.fromkeys(OLD_NAMES.values()))
    found = asked(older, tmp_path, "baseline", num_epochs=3)
    assert found["unchangeable"] == found["sums"] == {"a": 1}


def test_complete_is_only_what_has_ended(tmp_path):
    """The summary is that of the last epoch, and no more epochs are wanted."""
    path = saved(tmp_path)
    with pytest.raises(Complete, match="is complete: 2 epochs .more with --num_epochs"):
        asked(path, tmp_path)
    for summary in ("{}", "not JSON", json.dumps({"last": HISTORY[0]})):
        (tmp_path / "summary.json").write_text(summary)
        assert asked(path, tmp_path)["history"] == HISTORY
    assert asked(saved(tmp_path, HISTORY[:1]), tmp_path)["history"] == HISTORY[:1]
    assert asked(saved(tmp_path, []), tmp_path)["history"] == []
    with pytest.raises(Complete, match="3 epochs"):  # it was raised to 3 meanwhile
        asked(saved(tmp_path, [*HISTORY, {"epoch": 3}]), tmp_path)


def test_an_older_best_is_not_continued(tmp_path):
    """Unless last.pth is missing, or not newer."""
    best = saved(tmp_path, HISTORY[:1], "best.pth")
    assert asked(best, tmp_path)["history"] == HISTORY[:1]
    last = saved(tmp_path)
    with pytest.raises(UserError, match="has continued since best.pth: --resume .* resumes it; to go back, copy"):
        asked(best, tmp_path)
    assert asked(last, tmp_path, num_epochs=3)["history"] == HISTORY
    saved(tmp_path, HISTORY[:1])
    assert asked(best, tmp_path)["history"] == HISTORY[:1]
