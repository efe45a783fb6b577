"""What a run writes down, on the digits."""

import json
import threading

import pytest
import torch
from kill import FLAGS
from processes import curve, lines, saved_weights

import models
import train
from runtime.checkpoints import load_checkpoint, serialise
from runtime.errors import Complete
from training.folder import FILES


def test_files(finished):
    assert {f.name for f in finished.iterdir() if "tfevents" not in f.name} == {*FILES, "B", "lock"}
    assert saved_weights(finished).keys() == models.OKDDip("resnet8", 10).state_dict().keys()


def test_parameters(finished):
    parameters = json.loads((finished / "parameters.json").read_text())
    assert parameters["num_branches"] == 4 and parameters["milestones"] == [3] and parameters["method"] == "OKDDip"
    assert parameters["classes"] == [str(i) for i in range(10)] and len(parameters["mean"]) == 3
    assert parameters["environment"].keys() == {"revision", "python", "torch", "torchvision", "numpy", "device",
                                                "processes"}


def test_json_lines(finished):
    records = lines(finished)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    rows = ("stu0", "stu1", "stu2", "stu_", "", "mean_")
    for record in records:
        for phase in ("train", "test"):
            assert all(0 <= record[f"{row}{phase}_accTop1"] <= record[f"{row}{phase}_accTop5"] <= 100 for row in rows)
        images = record["stu_test_accTop1"] * 3.6
        assert images == pytest.approx(round(images), abs=1e-9)  # of 360 images, each counted once
        assert 0 <= record["dist"] <= 2**0.5
        assert [sum(row) for row in record["attention"]] == pytest.approx([1] * 3)
        assert record["train_loss"] == pytest.approx(
            record["train_loss_true"] + record["weight"] * record["train_loss_group"], rel=1e-5)
    assert [record["lr"] for record in records] == [0.1] * 3


def test_best(finished):
    best = json.loads((finished / "test_best_metrics.json").read_text())
    top = max(record["stu_test_accTop1"] for record in lines(finished))
    assert best["stu_test_accTop1"] == top
    assert best["epoch"] == max(r["epoch"] for r in lines(finished) if r["stu_test_accTop1"] == top)
    assert torch.load(finished / "best.pth", weights_only=True)["history"][-1] == best


def test_curves(finished):
    """Test/AccTop1 is the ensemble's, and the leader's in the sub-folder B."""
    for folder, name in ((finished, "test_accTop1"), (finished / "B", "stu_test_accTop1")):
        expected = [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in lines(finished)]
        assert curve(folder, "Test/AccTop1") == expected
    assert len(curve(finished, "Dist")) == len(curve(finished, "Test/stu0AccTop1")) == 3


def test_no_thread_is_left(flags, tmp_path):
    """A notebook may train often: TensorBoard's threads end with the training."""
    argv = [*FLAGS, "--num_epochs", "1", "--data_dir", flags[-1], "--overwrite", "--save_dir", str(tmp_path)]
    train.main(argv)
    before = set(threading.enumerate())
    train.main(argv)
    assert set(threading.enumerate()) <= before


def test_a_loss_that_is_not_a_number_is_null(flags, tmp_path):
    """Half precision overflows in evaluation: BatchNorm's running means are far from those of the batches."""
    argv = [*flags[:flags.index("--length")], "--amp", "fp16", "--data_dir", flags[-1], "--save_dir", str(tmp_path)]
    train.main([*argv, "--num_epochs", "1"])
    folder = tmp_path / "folder" / "resnet8"
    state = load_checkpoint(folder / "last.pth")
    for name, value in state["state_dict"].items():
        if name.endswith("running_mean"):
            value.fill_(-1e8)
    (folder / "last.pth").write_bytes(serialise(state))
    train.main([*argv, "--num_epochs", "2", "--resume", "auto"])

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    first, last = (json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").open())
    assert isinstance(first["test_loss"], float) and last["test_loss"] is None and last["epoch"] == 2
    assert all(isinstance(value, int | float) for name, value in last.items() if name != "test_loss")
    assert json.loads((folder / "summary.json").read_text(), parse_constant=refuse)["last"] == last
    assert "epoch 2/2: not a finite number, recorded as null: test_loss\n" in (folder / "train.log").read_text()
    with pytest.raises(Complete):
        train.main([*argv, "--num_epochs", "2", "--resume", "auto"])
