"""Weights from files, and teachers."""

import pytest
import torch
from network_data import random_images
from processes import TINY, saved_weights

import models
import train
import train_kd
from runtime.checkpoints import serialise
from runtime.errors import UserError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher")
    train.main([*TINY, "--num_epochs", "1", "--save_dir", str(root)])
    return root / "DIGITS" / "resnet8"


def test_a_teacher_is_a_run_a_file_or_a_checkpoint_of_the_authors(teacher, tmp_path):
    network = models.create_model("resnet8", 10)
    ours = saved_weights(teacher, "best.pth")
    authors = {"module." + name.split(".", 1)[1]: value for name, value in ours.items()}
    torch.save({"state_dict": authors, "epoch": 300}, tmp_path / "authors.pth")
    for path in (teacher, teacher / "last.pth", tmp_path / "authors.pth"):
        for p in network.parameters():
            torch.nn.init.zeros_(p)
        models.load_weights(network, path)
        assert all(value.equal(ours[name]) for name, value in network.state_dict().items())


def bad_teacher(kind, teacher, tmp_path):
    path = tmp_path / "teacher.pth"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        path.write_bytes((teacher / "best.pth").read_bytes()[:20000])
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "other classes":
        torch.save({"state_dict": models.create_model("resnet8", 7).state_dict()}, path)
    elif kind == "numbers":
        torch.save({"state_dict": {"conv1.weight": 3}}, path)
    return teacher if kind == "other network" else path


@pytest.mark.parametrize(("kind", "said"), [
    ("missing", "there is no checkpoint at"), ("text", "not a checkpoint"), ("truncated", "not a checkpoint"),
    ("a list", "holds a list"), ("other classes", "does not fit.*head.fc"), ("numbers", "does not fit"),
    ("other network", "resnet8 trained on DIGITS with 10 classes, which does not fit the requested resnet14")])
def test_a_bad_teacher_is_named(kind, said, teacher, tmp_path):
    path = bad_teacher(kind, teacher, tmp_path)
    name = "resnet14" if kind == "other network" else "resnet8"
    with pytest.raises(UserError, match=said):
        train_kd.main([*TINY, "--num_epochs", "1", "--T_model", name, "--T_model_path", str(path),
                       "--save_dir", str(tmp_path)])
    assert not (tmp_path / "DIGITS").exists()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"state_dict": Harm()}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="not a checkpoint that can be loaded safely"):
        models.load_weights(models.create_model("resnet8", 10), tmp_path / "harmful.pth")
    assert not (tmp_path / "harm").exists()


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with a network's weights in best.pth, and other weights in last.pth."""
    for name, seed in (("best.pth", 0), ("last.pth", 1)):
        torch.manual_seed(seed)
        network = models.create_model("resnet8", 10)
        (tmp_path / name).write_bytes(serialise({"format": 1, "state_dict": network.state_dict()}))
    return tmp_path


def test_a_teacher_has_the_weights_of_the_best_epoch_and_is_frozen(run_folder):
    teacher = models.load_teacher("resnet8", 10, run_folder)
    torch.manual_seed(0)
    expected = models.create_model("resnet8", 10).eval()(random_images(2))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert teacher(random_images(2)).equal(expected)
    assert not models.load_teacher("resnet8", 10, run_folder / "last.pth")(random_images(2)).equal(expected)


def test_the_checkpoint_of_a_group_is_named(tmp_path):
    """It is no plain network. The message says what the file has."""
    group = models.ONE("resnet8", 10, 2)
    flags = {"method": "ONE", "model": "resnet8", "dataset": "DIGITS"}
    (tmp_path / "last.pth").write_bytes(serialise({"format": 1, "flags": flags, "classes": list("0123456789"),
                                                   "state_dict": group.state_dict()}))
    with pytest.raises(UserError, match="ONE group of resnet8 trained on DIGITS with 10 classes.*not fit.* resnet8"):
        models.load_weights(models.create_model("resnet8", 10), tmp_path / "last.pth")
