"""What a run writes down and prints."""

import json
import threading

import pytest
from processes import curve, lines, saved_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import models
import train
from training.folder import FILES


def test_the_files_of_a_run(whole):
    assert {f.name for f in whole.iterdir() if "tfevents" not in f.name} == {*FILES, "B", "lock"}
    group = models.OKDDip("resnet8", 2)
    group.load_state_dict(saved_weights(whole))
    parameters = json.loads((whole / "parameters.json").read_text())
    assert parameters["num_branches"] == 4 and parameters["milestones"] == [2] and parameters["method"] == "OKDDip"
    assert parameters["classes"] == ["blue", "red"] and len(parameters["mean"]) == 3
    assert parameters["weights"] == sum(p.numel() for p in group.parameters())
    assert parameters["environment"].keys() == {"revision", "python", "torch", "torchvision", "numpy", "device",
                                                "processes"}
    log = (whole / "train.log").read_text()
    assert f"resnet8 on folder, 24 training and 24 test images, {parameters['weights']:,} weights, on cpu\n" in log
    assert "learning rate 0.02, divided by 10 after each of the epochs [2], of 4 in all\n" in log
    assert f"epoch 2/4  loss {lines(whole)[1]['train_loss']:.4f}  train " in log and "done: best epoch" in log


def test_each_epoch_s_metrics(whole):
    found = lines(whole)
    assert [record["epoch"] for record in found] == [1, 2, 3, 4]
    assert [record["lr"] for record in found] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    for record in found:
        assert record["attention_self"] == pytest.approx(sum(record["attention"][a][a] for a in range(3)) / 3, abs=1e-9)
        assert record["train_loss"] == pytest.approx(
            record["train_loss_true"] + record["weight"] * record["train_loss_group"], rel=1e-5)


def test_curves(whole):
    """Test/AccTop1 is the ensemble's, and the leader's in the sub-folder B. The attention is a picture."""
    for folder, name in ((whole, "test_accTop1"), (whole / "B", "stu_test_accTop1")):
        expected = [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in lines(whole)]
        assert curve(folder, "Test/AccTop1") == expected
    for tag in ("Dist", "Attention_self", "Test/stu0AccTop1"):
        assert len(curve(whole, tag)) == 4
    assert len(EventAccumulator(str(whole)).Reload().Images("Attention")) == 4


def test_no_thread_is_left(baseline):
    """A notebook may train often: TensorBoard's threads end with the training."""
    argv, _ = baseline
    train.main([*argv, "1"])
    before = set(threading.enumerate())
    train.main([*argv, "1", "--overwrite"])
    assert set(threading.enumerate()) <= before
