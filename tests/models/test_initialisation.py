"""The distribution of every kind of weight, for each family of networks, in groups with attention or gate."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn

import models

FAMILIES = {"resnet20": "fan_out", "wide_resnet20_8": "fan_out", "vgg16": "fan_out", "densenetd40k12": "fan_in",
            "resnet18": "fan_out"}
NORMAL = [NormalDist().inv_cdf(k / 10) for k in range(1, 10)]
UNIFORM = [k / 5 - 1 for k in range(1, 10)]


def is_drawn_from(weights, deciles, scale):
    """Whether the deciles of the weights, divided by ``scale``, are those of the distribution: 6 standard errors."""
    found = torch.quantile(weights.detach().flatten()[:10**5] / scale, torch.linspace(0.1, 0.9, 9))
    return (found - torch.tensor(deciles)).abs().max() < 6 * 1.8 / math.sqrt(min(weights.numel(), 10**5))


def fan(convolution, kind):
    channels = convolution.out_channels if kind == "fan_out" else convolution.in_channels
    return channels * convolution.weight[0, 0].numel()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("group", [models.OKDDip, models.ONE])
def test_every_weight_is_drawn_as_documented(name, group):
    torch.manual_seed(0)
    model = group(name, 10, 2)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            assert is_drawn_from(m.weight, NORMAL, math.sqrt(2 / fan(m, FAMILIES[name])))
            assert m.bias is None or not m.bias.any()
        elif isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and not m.bias.any()
            assert (m.running_var == 1).all() and not m.running_mean.any()
    classifiers = [head.fc if hasattr(head, "fc") else head.classifier for head in model.heads]
    for m in linears:
        bound = 1 / math.sqrt(m.in_features)
        assert is_drawn_from(m.weight, *((NORMAL, 0.01) if name == "vgg16" else (UNIFORM, bound)))
        if m.bias is None:
            continue
        if name == "vgg16" or name == "densenetd40k12" and m in classifiers:
            assert not m.bias.any()
        else:
            assert 0 < m.bias.abs().max() <= bound and m.bias.unique().numel() == m.bias.numel()
    assert len(linears) >= (4 if group is models.OKDDip else 3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("group", [models.FFL, models.PCL])
def test_the_linear_layer_of_all_students_is_drawn_like_attention_and_gate(name, group):
    """FFL's fused classifier, PCL's ensemble: N(0, 0.01^2) with bias 0 in a VGG, elsewhere PyTorch's default."""
    torch.manual_seed(0)
    model = group(name, 10, 2)
    m = model.fusion.fc if group is models.FFL else model.ensemble
    if name == "vgg16":
        assert is_drawn_from(m.weight, NORMAL, 0.01) and not m.bias.any()
    else:
        bound = 1 / math.sqrt(m.in_features)
        assert is_drawn_from(m.weight, UNIFORM, bound) and 0 < m.bias.abs().max() <= bound


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_different_parts_differ(name):
    torch.manual_seed(0)
    first, second = models.Branches(name, 10, 2).heads
    for (key, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert a.dim() == 1 or not a.equal(b), key


@pytest.mark.parametrize("names", [["vgg16", "densenetd40k12"], ["densenetd40k12", "resnet20"]])
def test_every_network_of_a_mixed_group_is_drawn_in_its_own_way(names):
    torch.manual_seed(0)
    group = models.Branches(names, 10, 2, network_based=True)
    for name, trunk, head in zip(names, group.trunks, group.heads, strict=True):
        for m in (*trunk.modules(), *head.modules()):
            if isinstance(m, nn.Conv2d):
                assert is_drawn_from(m.weight, NORMAL, math.sqrt(2 / fan(m, FAMILIES[name])))
