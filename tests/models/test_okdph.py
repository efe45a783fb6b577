"""OKDPH's hybrid network: its weights, its gradient, its fusion with the networks."""

import pytest
import torch
from torch.nn import functional as F

import models
from models.densenet import DenseLayer

C, M = 5, 3
VIEWS = torch.randn(4, M + 1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 4, 2, 2])


def make(r, hybrid_gradient=False):
    """Networks that differ, in float64, and mixing weights r."""
    torch.manual_seed(0)
    model = models.OKDPH("resnet8", C, M, hybrid_gradient).double()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.startswith(("hybrid", "r")):
                value.add_(0.05 * torch.rand_like(value))
    model.r.copy_(torch.tensor(r, dtype=torch.float64))
    return model


def weighted_sum(model, name, r):
    return sum(r_i * model.student(i).state_dict()[name] for i, r_i in enumerate(r))


def test_all_begin_with_the_same_weights():
    torch.manual_seed(0)
    model = models.OKDPH("resnet8", C, M)
    for network in (model.student(1), model.student(2), model.hybrid):
        for name, value in network.state_dict().items():
            assert value.equal(model.student(0).state_dict()[name])


def hybrid_of(model, r):
    """A network of its own with the weights and buffers sum_i r_i theta_i."""
    alone = models.create_model("resnet8", C).double()
    alone.load_state_dict({name: weighted_sum(model, name, r) if value.is_floating_point() else value
                           for name, value in model.hybrid.state_dict().items()})
    return alone


@pytest.mark.parametrize("hybrid_gradient", [False, True])
def test_the_hybrid_is_taken_anew_before_a_step(hybrid_gradient):
    """Weights and statistics; the step itself then updates the statistics by its own view."""
    r = [0.5, 0.3, 0.2]
    model = make(r, hybrid_gradient)
    alone = hybrid_of(model, r)
    z, z_hybrid = model(VIEWS)
    assert z_hybrid.requires_grad == hybrid_gradient
    assert z_hybrid.allclose(alone(VIEWS[:, -1]), rtol=1e-9)
    for name, value in alone.state_dict().items():
        assert value.allclose(model.hybrid.state_dict()[name], rtol=1e-9), name
    for i in range(M):
        assert z[:, i].allclose(model.student(i)(VIEWS[:, i]), rtol=1e-9)


def test_evaluation_has_the_hybrid_of_the_weights_as_they_are():
    """r_i = 1/m. The hybrid of the last step, which the fusion needs, stays. A deployed model gives the same logits."""
    model = make([0.5, 0.3, 0.2])
    model(VIEWS)
    model.eval()
    kept, alone = {k: v.clone() for k, v in model.hybrid.state_dict().items()}, hybrid_of(model, [1 / M] * M).eval()
    found = model(VIEWS[:, 0])[1]
    assert found.allclose(alone(VIEWS[:, 0]), rtol=1e-9)
    assert all(value.equal(kept[name]) for name, value in model.hybrid.state_dict().items())
    model.deploy()
    assert model(VIEWS[:, 0])[1].equal(found) and model.hybrid(VIEWS[:, 0]).equal(found)


def test_sharing_moves_each_network_towards_the_hybrid_of_the_last_step():
    model, gamma = make([0.5, 0.3, 0.2]), 0.25
    model(VIEWS)
    before = [{k: v.clone() for k, v in model.student(i).state_dict().items()} for i in range(M)]
    hybrid = {k: v.clone() for k, v in model.hybrid.state_dict().items()}
    model.share(gamma)
    for i in range(M):
        for name, value in model.student(i).state_dict().items():
            if value.is_floating_point():
                assert value.allclose(gamma * hybrid[name] + (1 - gamma) * before[i][name], rtol=1e-12), name


def test_recomputing_a_densenet_gives_the_same_gradients():
    """--efficient: the backward pass runs the hybrid again, without functional_call."""
    gradients, runs = [], []
    for efficient in (False, True):
        torch.manual_seed(0)
        model = models.OKDPH("densenetd40k12", C, 2, hybrid_gradient=True, efficient=efficient).double()
        model.r.copy_(torch.tensor([0.7, 0.3]))
        with torch.no_grad():
            for i, p in enumerate(model.trunks[1].parameters()):
                p.mul_(1 + i / 1000)
        norm = next(m for m in model.hybrid.modules() if isinstance(m, DenseLayer)).norm1
        norm.register_forward_hook(lambda *_: runs.append(0))
        z, z_hybrid = model(VIEWS[:2, :3])
        (F.cross_entropy(z.flatten(0, 1), LABELS) + F.cross_entropy(z_hybrid, LABELS[:2])).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(runs) == 3  # once, then once and again in backward
    assert all(a.allclose(b, rtol=1e-9, atol=1e-12) for a, b in zip(*gradients, strict=True))
