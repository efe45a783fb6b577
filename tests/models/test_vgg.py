import pytest
import torch
from network_data import assert_std
from torch import nn

import models


def test_vgg19_has_one_more_convolution_in_each_of_three_stages():
    def count(name):
        return sum(p.numel() for p in models.create_model(name, 10).parameters())

    assert count("vgg19") - count("vgg16") == sum(9 * c * c + 3 * c for c in (256, 512, 512))


@pytest.mark.parametrize("make", [lambda: models.OKDDip("vgg16", 10, 2), lambda: models.ONE("vgg16", 10, 2)])
def test_vgg_linears_start_small(make):
    torch.manual_seed(0)
    model = make()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {"heads.1.classifier.6", *(["aggregation.W_L", "aggregation.W_E"] if hasattr(model, "aggregation")
                                      else ["gate.linear"])} < set(linears)
    for m in linears.values():
        assert_std(m.weight, 0.01)
        assert m.bias is None or not m.bias.any()


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    group = models.OKDDip("vgg16", 10, 2, dropout=0.5)
    x = torch.randn(4, 512)
    for head in group.heads:
        assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
        assert not torch.equal(head.classifier(x), head.classifier(x))
        head.eval()
        assert torch.equal(head.classifier(x), head.classifier(x))
        hidden = head.train().classifier[:3](x)
        positive = head.classifier[:2](x) > 0
        assert 0.4 < (hidden[positive] == 0).float().mean() < 0.6


def test_no_dropout_by_default():
    classifier = models.create_model("vgg16", 10).train().head.classifier
    x = torch.randn(4, 512)
    assert torch.equal(classifier(x), classifier(x))
