"""FFL's fusion and its group."""

import pytest
import torch
from torch.nn import functional as F

import models
from models.ffl import Fusion

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_fusion_one_number_at_a_time():
    """Concatenation, a 3x3 filter for each channel, BatchNorm and ReLU, sums over channels, the same again, means."""
    torch.manual_seed(0)
    fusion = Fusion(num_branches=2, width=2, num_classes=3).double()
    maps = [torch.randn(2, 2, 3, 3, dtype=torch.float64) for _ in range(2)]
    channels = [maps[k // 2][:, k % 2] for k in range(4)]  # [B, H, W] each

    def normalised(x, norm, c):
        values = x.flatten()
        mean, var = sum(values) / len(values), sum((v - sum(values) / len(values)) ** 2 for v in values) / len(values)
        return ((x - mean) / (var + norm.eps) ** 0.5 * norm.weight[c] + norm.bias[c]).clamp(min=0)

    def filtered(x, kernel):
        padded = F.pad(x, (1, 1, 1, 1))
        return torch.stack([torch.stack([(padded[:, r:r + 3, c:c + 3] * kernel).sum((1, 2)) for c in range(3)], 1)
                            for r in range(3)], 1)

    depthwise = [normalised(filtered(x, fusion.depthwise.weight[k, 0]), fusion.norm1, k)
                 for k, x in enumerate(channels)]
    mixed = [sum(fusion.pointwise.weight[d, k, 0, 0] * x for k, x in enumerate(depthwise)) for d in range(2)]
    h = torch.stack([normalised(x, fusion.norm2, d).mean((1, 2)) for d, x in enumerate(mixed)], 1)
    expected = h @ fusion.fc.weight.T + fusion.fc.bias
    assert fusion(maps).allclose(expected, rtol=1e-10)


@pytest.mark.parametrize("network_based", [False, True])
def test_the_fused_logits_alone_give_every_student_a_gradient(network_based):
    """The students are those of Branches. s and its gradient are those of their maps, put together outside."""
    torch.manual_seed(0)
    model = models.FFL("resnet8", 10, 3, network_based).double()
    plain = models.Branches("resnet8", 10, 3, network_based).double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fusion")})
    images = IMAGES.double()
    weights = [p for name, p in model.named_parameters() if not name.startswith("heads") or ".fc." not in name]
    z, s = model(images)
    assert z.equal(plain(images))
    found = torch.autograd.grad(s.square().sum(), weights)
    x = [trunk(images) for trunk in model.trunks]
    expected = model.fusion([head.feature_map(x[i if network_based else 0]) for i, head in enumerate(model.heads)])
    assert s.equal(expected)
    for a, b in zip(found, torch.autograd.grad(expected.square().sum(), weights), strict=True):
        assert a.allclose(b, rtol=1e-8, atol=1e-10) and a.any()


@pytest.mark.parametrize(("name", "shape"), [("resnet8", (64, 8, 8)), ("vgg16", (512, 2, 2)),
                                             ("densenetd40k12", (132, 8, 8)), ("resnet18", (512, 1, 1))])
def test_the_maps_are_those_before_pooling(name, shape):
    network = models.create_model(name, 10).eval()
    assert network.head.feature_map(network.trunk(IMAGES)).shape == (4, *shape)
