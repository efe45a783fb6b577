import json

import numpy as np
import pytest
import torch
import torchvision
from image_data import IMAGENET_CLASSES, make_imagenet
from network_data import load_official, random_images, weights_by_name

import models
import train_GL


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_networks_equal_torchvisions(name):
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.load_state_dict(weights_by_name({key: tuple(value.shape) for key, value in theirs.state_dict().items()}))
    ours = models.create_model(name, 1000).eval()
    models.load_official_state_dict(ours, theirs.state_dict())
    with torch.no_grad():
        assert ours(random_images(2, 64)).equal(theirs(random_images(2, 64)))


@pytest.mark.parametrize(("block", "classifier"), [("layer4_{i}", "classifier4_{i}"), ("layer3_{i}", "fc_{i}")])
def test_official_branches(block, classifier):
    theirs = torchvision.models.resnet18(weights=None, num_classes=5).double().eval()
    names = {}  # torchvision's name -> those in the checkpoint, one for each branch if it is of the head
    for key in theirs.state_dict():
        part, rest = key.split(".", 1)
        named = {"layer4": block, "fc": classifier}.get(part)
        names[key] = [f"{named.format(i=i)}.{rest}" for i in range(2)] if named else [key] * 2
    checkpoint = weights_by_name({name: tuple(value.shape) for key, value in theirs.state_dict().items()
                                  for name in names[key]})
    x = random_images(2, 64).double()
    with torch.no_grad():
        logits = load_official(models.Branches("resnet18", 5, 2), checkpoint)(x)
        for i in range(2):
            theirs.load_state_dict({key: checkpoint[names[key][i]] for key in names})
            torch.testing.assert_close(logits[:, i], theirs(x))


def test_okddip_on_imagenet(tmp_path):
    root = make_imagenet(tmp_path / "images", train=3, val=2)
    train_GL.main(["--model", "resnet18", "--dataset", "imagenet", "--data_dir", str(root), "--num_branches", "3",
                   "--batch_size", "4", "--num_workers", "0", "--num_epochs", "1", "--val_size", "2", "--device", "cpu",
                   "--save_dir", str(tmp_path)])
    folder = tmp_path / "imagenet" / "OKDDip" / "resnet18"
    parameters = json.loads((folder / "parameters.json").read_text())
    assert parameters["classes"] == IMAGENET_CLASSES and parameters["mean"] == [0.485, 0.456, 0.406]
    (record,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert 0 <= record["stu_test_accTop1"] <= 100 and np.isfinite(record["train_loss"])
