"""What all networks have in common: weights, shapes, options."""

import pytest
import torch
from image_data import random_images
from torch import nn
from torchvision.models.resnet import Bottleneck

import models
from models import resnet


@pytest.mark.parametrize("widen", [1, 8])
def test_a_bottleneck_computes_what_torchvisions_does(widen):
    ours = resnet.Bottleneck(16, 8, 2, widen).double()
    theirs = Bottleneck(16, 8, 2, resnet.shortcut(16, 32, 2), base_width=64 * widen).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 16, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("name", "classes", "count", "x_shape", "width"), [
    ("resnet32", 10, 466_906, (32, 16, 16), 64), ("resnet110", 10, 1_147_738, (128, 16, 16), 256),
    ("wide_resnet20_8", 10, 6_848_090, (128, 16, 16), 256),
    ("vgg16", 10, 15_253_578, (512, 2, 2), 512),  # the paper authors' networks
    ("vgg19", 10, 15_253_578 + sum(9 * c * c + 3 * c for c in (256, 512, 512)), (512, 2, 2), 512),  # one more each
    ("densenetd40k12", 10, 176_122, (60, 8, 8), 132),
    ("densenetd100k12", 10, 769_162, (150, 8, 8), 342),  # Huang et al. 2017, Table 2: 0.8M
    ("resnet18", 1000, 11_689_512, (256, 2, 2), 512), ("resnet34", 1000, 21_797_672, (256, 2, 2), 512),  # torchvision's
    ("resnet50", 1000, 25_557_032, (1024, 2, 2), 2048)])
def test_weights_and_shapes(name, classes, count, x_shape, width):
    network = models.create_model(name, classes).eval()
    assert sum(p.numel() for p in network.parameters()) == count
    images = random_images(2)
    with torch.no_grad():
        x = network.trunk(images)
        h, z = network.head(x)
        assert x.shape == (2, *x_shape) and h.shape == (2, width)
        assert z.shape == (2, classes) and z.equal(network(images))


# --- options


@pytest.mark.parametrize(("name", "options", "message"), [
    ("resnet8", {"dropout": 0.5}, "--dropout is for vgg16, vgg19: resnet8 does not have it"),
    ("vgg16", {"efficient": True}, "--efficient is for densenetd40k12, densenetd100k12: vgg16 does not have it"),
    ("vgg16", {"drop": 0.5}, "networks have no option 'drop'")])
def test_options_of_other_networks_are_refused(name, options, message):
    models.create_model(name, 10, dropout=0.0, efficient=False)  # every network accepts both, if off
    for group in (models.create_model, models.Branches, models.OKDDip, models.ONE, models.CLILR, models.FFL, models.PCL,
                  models.KDCL, models.OKDPH):
        with pytest.raises((ValueError, TypeError), match=message):
            group(name, 10, **({} if group is models.create_model else {"num_branches": 2}), **options)


def test_no_dropout_by_default():
    """With it, it acts after both hidden layers, in training only."""
    without, x = models.create_model("vgg16", 10).train().head.classifier, torch.randn(4, 512)
    assert without(x).equal(without(x))
    classifier = models.OKDDip("vgg16", 10, 2, dropout=0.5).heads[1].classifier
    assert [m.p for m in classifier.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert not classifier(x).equal(classifier(x))
    assert classifier.eval()(x).equal(classifier(x))
