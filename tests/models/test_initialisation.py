"""The distribution of every kind of weight, for each family of networks, in groups with attention, gate or fusion."""

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


def check_convolutions(fan_of, *parts):
    for m in (m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)):
        fan = (m.out_channels if fan_of == "fan_out" else m.in_channels) * m.weight[0, 0].numel()
        assert is_drawn_from(m.weight, NORMAL, math.sqrt(2 / fan)) and (m.bias is None or not m.bias.any())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("group", [models.OKDDip, models.ONE, models.FFL, models.PCL])
def test_every_weight_is_drawn_as_documented(name, group):
    """The linear layer of all students (FFL's fused classifier, PCL's ensemble) is drawn like attention and gate."""
    torch.manual_seed(0)
    model = group(name, 10, 2)
    students = model.peers if group is models.PCL else model
    check_convolutions(FAMILIES[name], students.trunks, students.heads)
    if group is models.FFL:
        check_convolutions("fan_out", model.fusion)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and not m.bias.any()
            assert (m.running_var == 1).all() and not m.running_mean.any()
    for (key, a), b in zip(students.heads[0].named_parameters(), students.heads[1].parameters(), strict=True):
        assert a.dim() == 1 or not a.equal(b), key
    linears = [m for key, m in model.named_modules() if isinstance(m, nn.Linear) and not key.startswith("mean")]
    classifiers = [m for m in students.heads.modules() if isinstance(m, nn.Linear)]
    assert len(linears) > len(classifiers) >= 2
    for m in linears:
        bound = 1 / math.sqrt(m.in_features)
        assert is_drawn_from(m.weight, *((NORMAL, 0.01) if name == "vgg16" else (UNIFORM, bound)))
        if m.bias is None:
            continue
        if name == "vgg16" or name == "densenetd40k12" and m in classifiers:
            assert not m.bias.any()
        else:
            assert 0 < m.bias.abs().max() <= bound and m.bias.unique().numel() == m.bias.numel()


@pytest.mark.parametrize("names", [["vgg16", "densenetd40k12"], ["densenetd40k12", "resnet20"]])
def test_every_network_of_a_mixed_group_is_drawn_in_its_own_way(names):
    torch.manual_seed(0)
    group = models.Branches(names, 10, 2, network_based=True)
    for name, *parts in zip(names, group.trunks, group.heads, strict=True):
        check_convolutions(FAMILIES[name], *parts)
