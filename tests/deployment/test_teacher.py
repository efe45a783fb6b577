"""Teachers from files: runs, exported networks, checkpoints of the authors' code, bare weights."""

import json
import re

import pytest
import torch
from conftest import METHODS
from network_data import random_images
from processes import saved_weights

import evaluate
import models
import train_GL
import train_kd
from deployment.reading import read
from deployment.teacher import load_teacher
from runtime.checkpoints import serialise
from runtime.errors import UserError

X = random_images(3)
TINY = ["--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "64", "--num_epochs", "1", "--device", "cpu"]
DEPLOYED = ("", "KD", "OKDDip", "OKDDip-N", "PCL", "OKDPH")  # the other METHODS deploy no network


def logits(network):
    with torch.no_grad():
        return network(X)


@pytest.mark.parametrize("method", DEPLOYED)
def test_the_teacher_is_the_network_that_a_run_deploys(method, runs):
    """Of OKDDip the leader, of PCL mean peer 0, of OKDPH the hybrid. It is frozen."""
    folder = runs / method / "resnet8"
    saved = read(folder)
    with torch.no_grad():
        expected = saved.logits(X, saved.deployed_output())
    for path in (folder, folder / "last.pth"):  # of a training with one epoch
        teacher = load_teacher("resnet8", 10, path)
        assert logits(teacher).allclose(expected, atol=1e-5)
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("method", [method for method in METHODS if method not in DEPLOYED])
def test_a_group_that_deploys_no_network_names_the_way_out(method, runs, tmp_path):
    """The command of the message makes a teacher of a student."""
    folder = runs / method / "resnet8"
    with pytest.raises(UserError, match="no network is deployed.*evaluate.py .* --export FILE --branch I") as refused:
        load_teacher("resnet8", 10, folder)
    words = re.search(r"evaluate.py (.*),", str(refused.value))[1].split()
    file = tmp_path / "student.safetensors"
    evaluate.main([{"FILE": str(file), "I": "1"}.get(word, word) for word in words])
    saved = read(folder)
    with torch.no_grad():
        assert logits(load_teacher("resnet8", 10, file)).allclose(saved.logits(X, "stu1"), atol=1e-5)


@pytest.mark.parametrize(("script", "method"), [(train_kd, "OKDPH"), (train_GL, "OKDDip")])
def test_a_training_with_the_network_of_a_group(script, method, runs, tmp_path):
    script.main([*TINY, "--save_dir", str(tmp_path), "--T_model", "resnet8", "--T_model_path",
                 str(runs / method / "resnet8")])
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["last"]["train_loss"] > 0


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_an_exported_file(ending, runs, tmp_path):
    evaluate.main([str(runs / "OKDDip" / "resnet8"), "--export", str(tmp_path / f"x{ending}")])
    expected = logits(load_teacher("resnet8", 10, runs / "OKDDip" / "resnet8"))
    assert logits(load_teacher("resnet8", 10, tmp_path / f"x{ending}")).equal(expected)


@pytest.mark.parametrize("names", ["ours", "authors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_with_the_prefixes_of_wrappers(names, prefix, runs, tmp_path):
    """As a teacher, for evaluate.py and for load_official_state_dict."""
    weights = saved_weights(runs / "resnet8", "best.pth")
    start = 0 if names == "ours" else 1
    wrapped = {prefix + ".".join(name.split(".")[start:]): value for name, value in weights.items()}
    torch.save({"state_dict": wrapped, "epoch": 300}, tmp_path / "teacher.pth")
    network = models.create_model("resnet8", 10)
    if names == "authors":
        models.load_official_state_dict(network, wrapped)
        assert all(value.equal(weights[name]) for name, value in network.state_dict().items())
    evaluated = read(tmp_path / "teacher.pth", model="resnet8").method.model
    for found in (evaluated, load_teacher("resnet8", 10, tmp_path / "teacher.pth")):
        assert all(value.equal(weights[name]) for name, value in found.state_dict().items())


def bad_teacher(kind, runs, tmp_path):
    """-> --T_model and --T_model_path."""
    path, run = tmp_path / "teacher.pth", runs / "resnet8"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        path.write_bytes((run / "best.pth").read_bytes()[:20000])
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "a number":
        torch.save({"state_dict": 3}, path)
    elif kind == "other classes":
        torch.save({"state_dict": models.create_model("resnet8", 7).state_dict()}, path)
    elif kind == "numbers":
        torch.save({"state_dict": {"conv1.weight": 3}}, path)
    elif kind == "bare group":
        torch.save(saved_weights(runs / "ONE" / "resnet8"), path)
    elif kind == "exported without weights":
        path = tmp_path / "x.pt2"
        evaluate.main([str(run), "--export", str(path)])
    elif kind in ("other run", "other group"):
        return "resnet14", run if kind == "other run" else runs / "OKDDip" / "resnet8"
    return "resnet14" if kind == "other network" else "resnet8", path


@pytest.mark.parametrize(("kind", "said"), [
    ("missing", "there is no checkpoint at"), ("text", "not a checkpoint"), ("truncated", "not a checkpoint"),
    ("a list", "holds a list"), ("a number", "not a dictionary of weights"),
    ("other classes", "7 classes, and the data set has 10"),
    ("numbers", "not hold the weights of a resnet8.*no classifier.*right network with --T_model$"),
    ("bare group", "bare weights of a group"), ("exported without weights", "does not give access to its weights"),
    ("other run", "holds a resnet8, not a resnet14: use --T_model resnet8"), ("other group", "use --T_model resnet8")])
def test_a_bad_teacher_is_named(kind, said, runs, tmp_path):
    name, path = bad_teacher(kind, runs, tmp_path)
    with pytest.raises(UserError, match=said):
        train_kd.main([*TINY, "--T_model", name, "--T_model_path", str(path),
                       "--save_dir", str(tmp_path)])
    assert not (tmp_path / "DIGITS").exists()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"state_dict": Harm()}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="not a checkpoint that can be loaded safely"):
        load_teacher("resnet8", 10, tmp_path / "harmful.pth")
    assert not (tmp_path / "harm").exists()


def test_a_folder_is_its_best_epoch(tmp_path):
    """Not the last one."""
    for name, seed in (("best.pth", 0), ("last.pth", 1)):
        torch.manual_seed(seed)
        network = models.create_model("resnet8", 10)
        (tmp_path / name).write_bytes(serialise({"format": 1, "state_dict": network.state_dict()}))
    torch.manual_seed(0)
    expected = logits(models.create_model("resnet8", 10).eval())
    assert logits(load_teacher("resnet8", 10, tmp_path)).equal(expected)
    assert not logits(load_teacher("resnet8", 10, tmp_path / "last.pth")).equal(expected)
