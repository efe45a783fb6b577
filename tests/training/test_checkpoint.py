"""What checkpoints hold, and which may be continued: the rules, without a training."""

import json
import random
from argparse import Namespace

import numpy as np
import pytest
import torch
from processes import be_one_of, group

from runtime import checkpoints
from runtime.device import seed_everything
from runtime.errors import Complete, UserError
from training.checkpoint import FORMAT, OLD_NAMES, Checkpoints, load_to_resume, random_state
from training.loop import Stepper
from training.method import SingleNetwork

# --- writing and restoring


def record(epoch, accuracy):
    return {"epoch": epoch, "accuracy": accuracy, "other": -accuracy}


def made_up(folder, *accuracies):
    """The checkpoints of a training with these accuracies."""
    history = [record(e, a) for e, a in enumerate(accuracies, 1)]
    stepper = Stepper(SingleNetwork(torch.nn.Linear(1, 1)), 0.1, 0, [9], torch.device("cpu"))
    return Checkpoints(folder, stepper, history, "accuracy", {"flags": {"lr": 0.1}})


@pytest.mark.parametrize(("accuracies", "best"), [((50, 60, 40), 2), ((50, 60, 60), 3), ((60, 50), 1), ((1,), 1)])
def test_the_best_epoch(accuracies, best, tmp_path):
    """The highest accuracy; of two equal ones the later."""
    assert made_up(tmp_path, *accuracies).best() == record(best, accuracies[best - 1])


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
    saved.stepper.terms = ["total"] * steps
    for _ in range(steps):
        saved.stepper.sums.add(4, terms=torch.ones(1))
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
    again, content = made_up(tmp_path, 50), checkpoints.load_checkpoint(tmp_path / "last.pth")
    again.restore(content)
    assert drawn() == expected
    content["random"] *= 2  # of another number of processes: they start anew
    seed_everything(6)
    expected = drawn()
    seed_everything(6)
    again.restore(content)
    assert drawn() == expected


def test_each_process_goes_on_with_its_own_random_numbers(tmp_path, monkeypatch):
    states, again = [], made_up(tmp_path)
    for seed in (5, 6):
        seed_everything(seed)
        states.append(random_state(torch.device("cpu")))
    content, expected = again.state() | {"random": states}, drawn()  # those of seed 6
    be_one_of(monkeypatch, group(2)[1])
    again.restore(content)
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
    (tmp_path / "summary.json").write_text(json.dumps({"last": HISTORY[0]}))
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
