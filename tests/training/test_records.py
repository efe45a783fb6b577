"""What a run writes down and prints."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import curve, lines, saved_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import models
import train
from training import records
from training.folder import FILES
from training.metrics import RunningSums


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
    rows = ("stu0", "stu1", "stu2", "stu_", "", "mean_")
    for record in found:
        assert all(0 <= record[f"{row}test_accTop1"] <= record[f"{row}test_accTop5"] <= 100 for row in rows)
        images = record["stu_test_accTop1"] * 0.24
        assert images == pytest.approx(round(images), abs=1e-9)  # of 24 images, each counted once
        assert 0 <= record["dist"] <= 2**0.5
        assert [sum(row) for row in record["attention"]] == pytest.approx([1] * 3)
        assert record["attention_self"] == pytest.approx(sum(record["attention"][a][a] for a in range(3)) / 3, abs=1e-9)
        assert record["train_loss"] == pytest.approx(
            record["train_loss_true"] + record["weight"] * record["train_loss_group"], rel=1e-5)


def test_curves(whole):
    """Test/AccTop1 is the ensemble's, and the leader's in the sub-folder B; the attention is a picture."""
    for folder, name in ((whole, "test_accTop1"), (whole / "B", "stu_test_accTop1")):
        expected = [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in lines(whole)]
        assert curve(folder, "Test/AccTop1") == expected
    for tag in ("Dist", "Attention_self", "Test/stu0AccTop1"):
        assert len(curve(whole, tag)) == 4
    picture = whole.parent / "picture.png"
    picture.write_bytes(EventAccumulator(str(whole)).Reload().Images("Attention")[-1].encoded_image_string)
    grey = np.asarray(Image.open(picture).convert("L"))
    assert grey.shape == (96, 96)
    assert grey[16::32, 16::32] / 255 == pytest.approx(np.array(lines(whole)[-1]["attention"]), abs=0.005)


def test_no_thread_is_left(baseline):
    """A notebook may train often: TensorBoard's threads end with the training."""
    argv, _ = baseline
    train.main([*argv, "1"])
    before = set(threading.enumerate())
    train.main([*argv, "1", "--overwrite"])
    assert set(threading.enumerate()) <= before


def test_progress_in_lines(caplog, monkeypatch):
    """If standard error is not a terminal: a line every log_every steps, with loss, accuracy, speed and time left."""
    monkeypatch.setattr(records.sys, "stderr", SimpleNamespace(isatty=lambda: False))
    stepper = SimpleNamespace(sums=RunningSums(torch.device("cpu")))
    stepper.means = lambda: {"terms": {"total": 2.0}, "correct": stepper.sums.means()["correct"]}
    method = SimpleNamespace(outputs={"": "network"}, best="")
    caplog.set_level("INFO")
    with records.Progress("epoch 1/2", stepper, steps=5, log_every=2, method=method) as shown:
        for _ in range(5):
            stepper.sums.add(8, correct=torch.tensor([[4, 8]]))
            shown.update()
    assert len(caplog.messages) == 2
    for word in ("step 2/5", "loss 2.0000", "top-1 50.00 %", "images/s", "s left"):
        assert word in caplog.messages[0]
