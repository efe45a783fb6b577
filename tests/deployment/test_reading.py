"""Which file is read, and what a checkpoint without some of today's flags becomes."""

import shutil

import pytest
import torch
from conftest import METHODS

import models
from deployment.measuring import measure
from deployment.reading import read
from runtime.checkpoints import serialise


def metrics(path):
    return measure(read(path), torch.device("cpu"))["figures"]


def checkpoint(path):
    return torch.load(path, weights_only=True)


def test_a_file_means_that_file(runs):
    for name in ("best.pth", "last.pth"):
        path = runs / "OKDDip" / "resnet8" / name
        assert metrics(path)["stu_test_loss"] == checkpoint(path)["history"][-1]["stu_test_loss"]


def test_a_run_means_its_best_epoch(runs, tmp_path):
    """best.pth has other weights here than last.pth."""
    folder = tmp_path / "run"
    shutil.copytree(runs / "OKDDip" / "resnet8", folder)
    best = checkpoint(folder / "best.pth")
    del best["digest"]
    best["state_dict"]["heads.3.fc.bias"][2] += 100
    (folder / "best.pth").write_bytes(serialise(best))
    found = metrics(folder)
    assert found["stu_test_accPerClass"] == [100 * (c == 2) for c in range(10)]
    assert metrics(folder / "last.pth")["stu_test_accPerClass"] != found["stu_test_accPerClass"]


@pytest.mark.parametrize("method", METHODS)
def test_old_checkpoints_get_the_defaults_of_later_flags(method, runs, tmp_path):
    """The model and its outputs are the same. The teacher of a KD run is neither needed nor loaded."""
    path = runs / method / "resnet8" / "best.pth"
    content = checkpoint(path)
    del content["digest"]
    for flag in ("train_size", "detach_targets", "save_steps", "T_model_path"):
        content["flags"].pop(flag, None)
    (tmp_path / "old.pth").write_bytes(serialise(content))
    old, new = read(tmp_path / "old.pth"), read(path)
    assert old.flags.train_size == 0 and old.method.teacher is None
    assert old.method.outputs == new.method.outputs and old.flags.method == new.flags.method == method
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, expected = old.method.predict(x)[0], new.method.predict(x)[0]
    assert all(z.equal(expected[output]) for output, z in found.items())


def test_bare_weights_of_a_network(tmp_path):
    network = models.create_model("resnet8", 10).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    saved, x = read(tmp_path / "weights.pth", model="resnet8"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert saved.logits(x, "").equal(network(x))
    assert saved.flags.dataset == "CIFAR10" and not saved.named and saved.classes == [str(c) for c in range(10)]
