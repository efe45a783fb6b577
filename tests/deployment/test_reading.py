"""Which file is read, as what, and as whose teacher: runs, exported files, checkpoints of the authors' code."""

import re
import shutil
from argparse import Namespace

import pytest
import torch
from conftest import METHODS
from image_data import random_images
from processes import saved_weights

import data_loader
import evaluate
import models
from deployment.reading import count_classes, load_teacher, read, recognise
from runtime.checkpoints import serialise
from runtime.errors import UserError

X = random_images(3)
DATA = Namespace(classes=[str(c) for c in range(10)], mean=[0.2, 0.3, 0.4], std=[0.5, 0.6, 0.7], size=32)


def logits(network):
    with torch.no_grad():
        return network(X)


def same_weights(network, weights):
    own = network.state_dict()
    return own.keys() == weights.keys() and all(own[name].equal(value) for name, value in weights.items())


def test_a_folder_means_its_best_epoch_and_a_file_itself(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "OKDDip" / "resnet8", folder)
    best = torch.load(folder / "best.pth", weights_only=True)
    del best["digest"]
    best["state_dict"]["heads.3.fc.bias"] += 1
    (folder / "best.pth").write_bytes(serialise(best))
    for path, name in ((folder, "best.pth"), (folder / "best.pth", "best.pth"), (folder / "last.pth", "last.pth")):
        assert same_weights(read(path).method.model, saved_weights(folder, name))
    teachers = [logits(load_teacher("resnet8", path, DATA)) for path in (folder, folder / "last.pth")]
    assert teachers[0].allclose(teachers[1] + 1, atol=1e-5)


# --- weights under the authors' names, and bare weights


def authors_name(key, network_based):
    for ours, theirs in (("aggregation.W_L", "query_weight"), ("aggregation.W_E", "key_weight"),
                         ("gate.linear", "control_v1"), ("gate.norm", "bn_v1")):
        key = key.replace(ours, theirs)
    found = re.fullmatch(r"(trunks|heads)\.(\d)\.(.*)", key)
    if found is None:
        return re.sub(r"^(trunk|head)\.", "", key)
    part, i, rest = found.groups()
    if network_based or part == "trunks":
        return f"stu{i}.{rest}" if network_based else rest
    return rest.replace("layer3.", f"layer3_{i}.", 1).replace("fc.", f"classifier3_{i}.", 1)


@pytest.mark.parametrize(("method", "prefix", "given"), [
    ("", "module.", None), ("OKDDip", "", None), ("OKDDip-N", "module.", None), ("ONE", "", None),
    ("Ind", "module.", None), ("CL-ILR", "", "CL")])
def test_checkpoints_of_the_authors_code(method, prefix, given, runs, tmp_path):
    """The method and the number of students are recognised; of groups that look the same, --method names one."""
    own = read(runs / method / "resnet8")
    theirs = {prefix + authors_name(key, method.endswith("-N")): value
              for key, value in own.method.model.state_dict().items()}
    torch.save({"state_dict": theirs, "epoch": 300}, tmp_path / "theirs.pth.tar")
    found = read(tmp_path / "theirs.pth.tar", model="resnet8", method=given, dataset="DIGITS")
    assert same_weights(found.method.model, own.method.model.state_dict())
    assert found.method.outputs == own.method.outputs and list(found.mean) == list(own.mean)
    assert found.flags.method == {"": "baseline", "OKDDip-N": "OKDDip", "CL-ILR": "CL"}.get(method, method)
    assert found.classes == [str(c) for c in range(10)] and not found.named and found.size == 32


@pytest.mark.parametrize(("name", "kind"), [("vgg16", models.OKDDip), ("densenetd40k12", models.Branches)])
def test_branches_of_other_families_are_recognised(name, kind):
    model = kind(name, 7, 3)
    theirs = {models.official.official_names(key, model)[-1]: value for key, value in model.state_dict().items()}
    method, group = recognise(theirs)
    assert method == ("OKDDip" if name == "vgg16" else "Ind") and count_classes(theirs) == 7
    assert group["num_branches"] == 3 and not group["MulStu"]


@pytest.mark.parametrize("names", ["ours", "authors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_bare_weights_with_the_prefixes_of_wrappers(names, prefix, runs, tmp_path):
    weights = saved_weights(runs / "resnet8", "best.pth")
    wrapped = {prefix + name.split(".", names == "authors")[-1]: value for name, value in weights.items()}
    torch.save(wrapped, tmp_path / "weights.pth")
    saved = read(tmp_path / "weights.pth", model="resnet8")
    assert saved.flags.dataset == "CIFAR10" and not saved.named
    for network in (saved.method.model, load_teacher("resnet8", tmp_path / "weights.pth", DATA)):
        assert same_weights(network, weights)


def test_bare_weights_are_for_the_data_with_as_many_classes(tmp_path, capsys):
    for classes in (100, 1000, 7):
        torch.save(models.create_model("resnet8", classes).state_dict(), tmp_path / f"{classes}.pth")
    for classes, data in ((100, "CIFAR100"), (1000, "imagenet")):
        saved, known = read(tmp_path / f"{classes}.pth", model="resnet8"), data_loader.DATASETS[data]
        assert (saved.flags.dataset, saved.mean, saved.size) == (data, known.mean, known.size)
        assert f"normalised: by mean and std of {data}, because it has {classes} classes" in capsys.readouterr().err
    with pytest.raises(UserError, match="a network for 7 classes, and does not say how its images are normalised"):
        read(tmp_path / "7.pth", model="resnet8")
    saved = read(tmp_path / "7.pth", model="resnet8", dataset="DIGITS")
    assert saved.flags.dataset == "DIGITS"
    load_teacher("resnet8", tmp_path / "7.pth", saved)  # it gets the images of its students
    assert capsys.readouterr().err == ""


# --- teachers


def test_a_group_that_deploys_no_network_names_the_way_out(runs, tmp_path):
    """The command of the message makes a teacher of a student."""
    for method in METHODS.keys() - {"", "KD", "OKDDip", "OKDDip-N", "PCL", "OKDPH"}:  # these deploy one
        with pytest.raises(UserError, match="without a leader.*evaluate.py .* --export FILE --branch I") as refused:
            load_teacher("resnet8", runs / method / "resnet8", DATA)
    words = re.search(r"evaluate.py (.*),", str(refused.value))[1].split()
    saved = read(words[0])
    file = tmp_path / "student.safetensors"
    evaluate.main([{"FILE": str(file), "I": "1"}.get(word, word) for word in words])
    with torch.no_grad():
        assert logits(load_teacher("resnet8", file, saved)).allclose(saved.logits(X, "stu1"), atol=1e-5)


@pytest.mark.parametrize(("content", "said"), [
    (lambda: [1, 2], "contains a list"), (lambda: {"state_dict": 3}, "not a dictionary of weights"),
    (lambda: {"state_dict": models.create_model("resnet8", 7).state_dict()}, "7 classes, and the data has 10: "),
    (lambda: {"state_dict": {"conv1.weight": 3}},
     "not hold the weights of a resnet8.*no classifier.*right network .--model, --T_model. and --method$"),
    (lambda: models.ONE("resnet8", 10, 4).state_dict(), "bare weights of a group")])
def test_a_bad_teacher_is_named(content, said, tmp_path):
    """tests/runtime/test_checkpoints.py has files that are no checkpoints."""
    torch.save(content(), tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=said):
        load_teacher("resnet8", tmp_path / "teacher.pth", DATA)


def test_a_teacher_gets_images_as_it_was_trained_with(runs, tmp_path):
    saved, pixels = read(runs / "resnet8"), torch.rand(3, 3, 32, 32)
    data = Namespace(**vars(DATA))
    own, here = ((pixels - torch.tensor(of.mean)[:, None, None]) / torch.tensor(of.std)[:, None, None]
                 for of in (saved, data))
    with torch.no_grad():
        expected = saved.logits(own, "")
        assert load_teacher("resnet8", runs / "resnet8", data)(here).allclose(expected, atol=1e-4)
        assert load_teacher("resnet8", runs / "resnet8", saved)(own).equal(expected)
    evaluate.main([str(runs / "resnet8"), "--export", str(tmp_path / "t.safetensors")])
    teacher = load_teacher("resnet8", tmp_path / "t.safetensors", data)
    with torch.no_grad():
        assert teacher(here).allclose(expected, atol=1e-4)
    data.classes = data.classes[::-1]  # the order of folders "0" to "10" is not that of numbers, either
    with pytest.raises(UserError, match="holds a network for other classes, 0 there, 9 here"):
        load_teacher("resnet8", tmp_path / "t.safetensors", data)
    data.classes = [*saved.classes[:9], "nine"]
    with pytest.raises(UserError, match="holds a network for other classes, 9 there, nine here"):
        load_teacher("resnet8", runs / "resnet8", data)


def test_a_run_of_another_network_is_no_teacher(runs):
    with pytest.raises(UserError, match="holds a resnet8, not a resnet14: name that one, or another file"):
        load_teacher("resnet14", runs / "resnet8", DATA)
