import pytest
import torch

import models


def weights(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "count"), [("resnet32", 466_906), ("resnet110", 1_147_738),
                                             ("wide_resnet20_8", 6_848_090)])
def test_number_of_weights(name, count):
    assert weights(models.create_model(name, 10)) == count


def test_number_of_weights_of_a_group():
    assert weights(models.OKDDip("resnet32", 10, num_branches=4)) == 1_530_872


@pytest.mark.parametrize(("depth", "convolutions"), [(8, 7), (14, 13), (20, 19), (32, 31), (44, 43), (56, 55)])
def test_depth(depth, convolutions):
    """A ResNet-n of basic blocks has n - 1 3x3 convolutions and the classifier. Shortcuts do not count."""
    network = models.create_model(f"resnet{depth}", 10)
    assert sum(m.kernel_size == (3, 3) for m in network.modules() if isinstance(m, torch.nn.Conv2d)) == convolutions


@pytest.mark.parametrize(("name", "width", "feature_size"), [("resnet8", 32, 64), ("resnet110", 128, 256),
                                                             ("wide_resnet20_8", 128, 256)])
def test_trunk_and_head(name, width, feature_size):
    network = models.create_model(name, 100).eval()
    images = torch.randn(2, 3, 32, 32)
    x = network.trunk(images)
    h, z = network.head(x)
    assert x.shape == (2, width, 16, 16) and network.trunk.width == width
    assert h.shape == (2, feature_size) and network.head.width == feature_size
    assert z.shape == (2, 100) and z.equal(network(images))


def test_initialisation():
    """Convolutions: standard deviation sqrt(2 / fan_out). BatchNorm: 1 and 0."""
    torch.manual_seed(0)
    network = models.create_model("wide_resnet20_8", 10)
    convolution = network.head.layer3[0].conv2
    fan_out = convolution.out_channels * 9
    assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.01)
    for m in network.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            assert (m.weight == 1).all() and (m.bias == 0).all()
