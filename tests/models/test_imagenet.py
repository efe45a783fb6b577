import json
import math

import numpy as np
import pytest
import torch
import torchvision
from image_data import IMAGENET_CLASSES, make_imagenet
from network_data import load_official, random_images, weights_by_name

import models


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_networks_equal_torchvisions(name):
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.load_state_dict(weights_by_name({key: tuple(value.shape) for key, value in theirs.state_dict().items()}))
    ours = models.create_model(name, 1000).eval()
    models.load_official_state_dict(ours, theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(random_images(2, 64)), theirs(random_images(2, 64)))


@pytest.mark.parametrize(("block", "classifier"), [
    ("layer4_{i}", "classifier4_{i}"), ("layer3_{i}", "classifier3_{i}"), ("layer4_{i}", "fc_{i}"),
])
def test_official_branches(block, classifier):
    theirs = torchvision.models.resnet18(weights=None, num_classes=5).double().eval()
    m, x = 2, random_images(2, 64).double()
    shapes, heads = {}, []
    for key, value in theirs.state_dict().items():
        part, rest = key.split(".", 1)
        if part in ("layer4", "fc"):
            named = block if part == "layer4" else classifier
            names = [f"{named.format(i=i)}.{rest}" for i in range(m)]
            heads.append((key, names))
        else:
            names = [key]
        shapes |= dict.fromkeys(names, tuple(value.shape))
    checkpoint = weights_by_name(shapes)
    with torch.no_grad():
        logits = load_official(models.Branches("resnet18", 5, m), checkpoint)(x)
        for i in range(m):
            branch = {key: value for key, value in checkpoint.items() if key in theirs.state_dict()}
            theirs.load_state_dict(branch | {key: checkpoint[names[i]] for key, names in heads})
            torch.testing.assert_close(logits[:, i], theirs(x))


def test_linears_start_with_pytorchs_default():
    torch.manual_seed(0)
    group = models.OKDDip("resnet18", 10, 2)
    for m in (group.heads[0].fc, group.aggregation.W_L, group.aggregation.W_E):
        assert m.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 512), rel=0.05)
    assert group.heads[0].fc.bias.all()


def test_okddip_on_imagenet(script, tmp_path):
    root = make_imagenet(tmp_path / "images")
    done = script("train_GL.py", "--model", "resnet18", "--dataset", "imagenet", "--data_dir", root,
                  "--num_branches", "3", "--batch_size", "4", "--num_workers", "2", "--num_epochs", "1",
                  "--val_size", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "imagenet" / "OKDDip" / "resnet18"
    parameters = json.loads((folder / "parameters.json").read_text())
    assert parameters["classes"] == IMAGENET_CLASSES and parameters["mean"] == [0.485, 0.456, 0.406]
    (record,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert 0 <= record["stu_test_accTop1"] <= 100 and np.isfinite(record["train_loss"])
