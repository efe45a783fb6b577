"""Checkpoints of the authors' code, made from torchvision's networks: here, by hand, their weights get other names.

So neither models/official.py nor the modules are compared with themselves.
"""

import pytest
import torch
import torchvision
from image_data import random_images
from slow import attention
from torch import nn

import models

C = 5


def vgg(name, depth):
    """torchvision's VGG with the classifier for 32x32 images, and the authors' names of its parts."""
    network = getattr(torchvision.models, name)()
    network.avgpool = nn.Identity()
    network.classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(),
                                       nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, C))
    parts = [f"features.{i}" for i, layer in enumerate(network.features) if hasattr(layer, "weight")]
    names = [f"layer{stage}.{3 * i + j}" for stage in (1, 2, 3, 4) for i in range(2 if stage == 1 else depth)
             for j in (0, 1)]
    return network, dict(zip(parts, ["conv1", "bn1", "conv2", "bn2", *names], strict=True))


def densenet():
    """torchvision's DenseNet with the first layer for 32x32 images."""
    network = torchvision.models.DenseNet(12, (6, 6, 6), 24, num_classes=C)
    network.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    network.features.norm0 = network.features.relu0 = network.features.pool0 = nn.Identity()
    return network, {"features.norm5": "features.norm_final"}


TWINS = {"vgg16": lambda: vgg("vgg16_bn", 3), "vgg19": lambda: vgg("vgg19_bn", 4), "densenetd40k12": densenet,
         **{name: lambda name=name: (getattr(torchvision.models, name)(num_classes=C), {})
            for name in ("resnet18", "resnet34", "resnet50")}}


def twin(name):
    """-> torchvision's network, without a 0 or 1 in BatchNorm; the authors' names of its weights; images for it."""
    torch.manual_seed(0)
    network, parts = TWINS[name]()
    for value in network.double().eval().state_dict().values():
        if value.dim() == 1:
            value.add_(0.1 * torch.rand_like(value))
    split = {key: key.rpartition(".") for key in network.state_dict()}
    return (network, {key: f"{parts.get(part, part)}.{leaf}" for key, (part, _, leaf) in split.items()},
            random_images(2, 64 if "resnet" in name else 32).double())


def loaded(model, checkpoint):
    models.load_official_state_dict(model.double(), checkpoint)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg19", "densenetd40k12", "resnet34", "resnet50"])
def test_official_plain(name):
    """The logits, and the features: the input of the classifier."""
    (theirs, names, x), h = twin(name), []
    parallel = {f"module.{names[key]}": value for key, value in theirs.state_dict().items()}  # as DataParallel saves it
    network = loaded(models.create_model(name, C), parallel)
    assert len(network.state_dict()) == len(parallel)
    getattr(theirs, "fc" if "resnet" in name else "classifier").register_forward_pre_hook(lambda _, x: h.extend(x))
    torch.testing.assert_close(network.head(network.trunk(x))[::-1], (theirs(x), *h))


DENSE = {"features.norm_final": "norm_final_{i}", "classifier": "classifier3_{i}"}


@torch.no_grad()
@pytest.mark.parametrize(("name", "head"), [  # part of the head -> its name in branch i
    ("vgg16", {"layer4": "layer3_{i}", "classifier": "classifier3_{i}"}),
    ("densenetd40k12", {"features.denseblock3": "Branch{i}"} | DENSE),  # OKDDip's
    ("densenetd40k12", {"features.denseblock3": "layer3_{i}"} | DENSE),
    ("resnet18", {"layer4": "layer4_{i}", "fc": "classifier4_{i}"}),
    ("resnet18", {"layer4": "layer3_{i}", "fc": "fc_{i}"})])
def test_official_branches(name, head):
    checkpoint, x, expected, _ = branches(name, head)
    torch.testing.assert_close(loaded(models.Branches(name, C, 2), checkpoint)(x), expected)


def branches(name, head):
    """-> the authors' checkpoint of two branches, images, logits [B, 2, C], the twin of the last branch."""
    (theirs, names, x), checkpoint, expected = twin(name), {}, []
    for i in range(2):
        for key, value in theirs.state_dict().items():
            own = names[key]
            for part in head:
                if own.startswith(f"{part}."):
                    value.copy_(1.1 * value)  # the branches differ
                    own = head[part].format(i=i) + own.removeprefix(part)
            checkpoint[own] = value.clone()
        expected.append(theirs(x))
    return checkpoint, x, torch.stack(expected, 1), theirs


@torch.no_grad()
def test_official_gate():
    checkpoint, x, z, theirs = branches("resnet18", {"layer4": "layer4_{i}", "fc": "classifier4_{i}"})
    maps, linear, norm = [], nn.Linear(256, 2).double(), nn.BatchNorm1d(2).double().eval()
    norm.running_mean.uniform_(), norm.running_var.uniform_(0.5, 2), norm.weight.uniform_(), norm.bias.uniform_()
    theirs.layer4.register_forward_pre_hook(lambda _, inputs: maps.extend(inputs))
    theirs(x)
    g = norm(linear(maps[0].mean((2, 3)))).relu().softmax(1)
    for module, layer in {"control_v1": linear, "bn_v1": norm}.items():
        checkpoint |= {f"{module}.{key}": value for key, value in layer.state_dict().items()}
    torch.testing.assert_close(loaded(models.ONE("resnet18", C, 2), checkpoint)(x), (z, (g[..., None] * z).sum(1)))


@torch.no_grad()
def test_official_whole_networks_with_attention():
    (theirs, names, x), checkpoint, h, z = twin("resnet18"), {}, [], []
    theirs.fc.register_forward_pre_hook(lambda _, inputs: h.extend(inputs))
    for i in range(3):
        for value in theirs.state_dict().values():
            value.copy_(value * (0.8 + 0.4 * torch.rand(value.shape)))  # the students differ
        checkpoint |= {f"module.stu{i}.{names[key]}": value.clone() for key, value in theirs.state_dict().items()}
        z.append(theirs(x))
    h, z, leader = torch.stack(h[:2], 1), torch.stack(z[:2], 1), z[2]
    query, key = torch.randn(2, 64, 512, dtype=torch.float64) / h.square().sum(-1).mean().sqrt() / 4
    checkpoint |= {"module.query_weight.weight": query, "module.key_weight.weight": key}
    alpha = torch.tensor([attention(query, key, h_of_image, others=False) for h_of_image in h])
    assert alpha.min() > 0.01 and (alpha - alpha.mT).abs().max() > 0.01  # neither saturated nor symmetric
    targets = torch.stack([sum(alpha[:, a, b, None] * z[:, b] for b in range(2)) for a in range(2)], 1)
    model = loaded(models.OKDDip("resnet18", C, 3, network_based=True), checkpoint)
    torch.testing.assert_close(model(x), (z, targets, leader))


@pytest.mark.parametrize("lost", ["features.transition2.conv.weight", "Branch1.denselayer6.conv2.weight",
                                  "norm_final_0.bias"])
def test_official_names_what_is_missing_or_misshapen(lost):
    model = models.Branches("densenetd40k12", C, 2)
    checkpoint = {models.official.official_names(key, model)[0]: value for key, value in model.state_dict().items()}
    value = checkpoint.pop(lost)
    with pytest.raises(ValueError, match=f"no .*{lost}"):
        models.load_official_state_dict(model, checkpoint)
    with pytest.raises(ValueError, match=f"{lost}.* shape"):
        models.load_official_state_dict(model, checkpoint | {lost: value.repeat(*[2] * value.dim())})
