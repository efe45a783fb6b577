"""What all networks have in common: weights, shapes, options."""

import math
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from network_data import assert_std, random_images
from torch import nn

import models


@pytest.mark.parametrize(("name", "classes", "count"), [
    ("vgg16", 10, 15_253_578), ("densenetd40k12", 10, 176_122),  # the paper authors' networks
    ("densenetd100k12", 10, 769_162),  # Huang et al. 2017, Table 2: 0.8M
    ("resnet18", 1000, 11_689_512), ("resnet34", 1000, 21_797_672), ("resnet50", 1000, 25_557_032),  # torchvision's
])
def test_parameter_counts(name, classes, count):
    assert sum(p.numel() for p in models.create_model(name, classes).parameters()) == count


@pytest.mark.parametrize(("name", "size", "x_shape", "width"), [
    ("vgg16", 32, (512, 2, 2), 512), ("vgg19", 32, (512, 2, 2), 512),
    ("densenetd40k12", 32, (60, 8, 8), 132), ("densenetd100k12", 32, (150, 8, 8), 342),
    ("resnet18", 64, (256, 4, 4), 512), ("resnet34", 64, (256, 4, 4), 512), ("resnet50", 64, (1024, 4, 4), 2048),
])
def test_shapes(name, size, x_shape, width):
    network = models.create_model(name, 7, dropout=0.0, efficient=False).eval()  # every network accepts both, if off
    with torch.no_grad():
        x = network.trunk(random_images(2, size))
        h, z = network.head(x)
        logits = network(random_images(2, size))
    assert x.shape == (2, *x_shape) and network.trunk.width == x_shape[0]
    assert h.shape == (2, width) and network.head.width == width
    assert z.shape == (2, 7) and torch.equal(z, logits)


def test_unknown_network():
    with pytest.raises(ValueError, match="resnet33.*known are.*resnet32"):
        models.create_model("resnet33", 10)


@pytest.mark.parametrize(("name", "fan"), [("vgg16", 0), ("densenetd40k12", 1), ("resnet18", 0)])
def test_convolutions_start_kaiming_normal(name, fan):
    """fan: the dimension of the weight that counts, 0 for fan_out, 1 for fan_in."""
    torch.manual_seed(0)
    group = models.Branches(name, 10, 2)
    for m in group.modules():
        if isinstance(m, nn.Conv2d):
            assert_std(m.weight, math.sqrt(2 / (m.weight.shape[fan] * m.weight[0, 0].numel())))
            assert m.bias is None or not m.bias.any()
        elif isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and not m.bias.any()


# --- options


def test_every_network_accepts_options_that_are_off():
    models.create_model("resnet8", 10, dropout=0.0, efficient=False)
    models.OKDDip("resnet8", 10, 2, dropout=0.0, efficient=False)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("resnet8", {"dropout": 0.5}, "--dropout is for vgg16, vgg19: resnet8 does not have it"),
    ("densenetd40k12", {"dropout": 0.5}, "--dropout is for .*densenetd40k12"),
    ("resnet18", {"dropout": 0.5, "efficient": False}, "--dropout is for .*resnet18"),
    ("vgg16", {"efficient": True}, "--efficient is for densenetd40k12, densenetd100k12: vgg16 does not have it"),
    ("resnet8", {"dropout": 0.0, "efficient": True}, "--efficient is for .*resnet8"),
])
def test_options_of_other_networks_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create_model(name, 10, **options)
    for group in (models.Branches, models.OKDDip, models.ONE, models.CLILR, models.FFL, models.PCL, models.KDCL,
                  models.OKDPH):
        with pytest.raises(ValueError, match=message):
            group(name, 10, num_branches=2, **options)


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="drop"):
        models.create_model("vgg16", 10, drop=0.5)


COPIED = """
import torch, models, losses
images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
losses.okddip_loss(*models.OKDDip("resnet8", 10, 3)(images), labels).total.backward()
losses.dml_loss(models.Branches("resnet8", 10, 2, True)(images), labels).total.backward()
"""


def test_models_and_losses_work_when_they_alone_are_copied(tmp_path):
    shutil.copytree(ROOT / "models", tmp_path / "models")
    shutil.copy(ROOT / "losses.py", tmp_path)
    subprocess.run([sys.executable, "-c", COPIED], cwd=tmp_path, check=True)
