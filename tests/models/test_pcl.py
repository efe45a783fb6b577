"""PCL: views, the peer ensemble, the temporal mean model."""

import re

import pytest
import torch

import models

C, M = 5, 3
VIEWS = torch.randn(4, M, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make():
    torch.manual_seed(0)
    return models.PCL("resnet8", C, M)


def test_the_mean_model_begins_as_the_peers_and_one_view_is_that_of_all():
    model = make().eval()
    z, _, z_mean = model(VIEWS)
    assert z_mean.equal(z)
    one_view, _, _ = model(VIEWS[:, 0])
    assert one_view[:, 2].allclose(model.peers.student(2)(VIEWS[:, 0]), atol=1e-5)


def test_the_trunk_s_statistics_after_a_step():
    """Each view is normalised by its own statistics, and each updates the running ones, in the order of the views."""
    model = make().double()
    for branches in (model.peers, model.mean):
        norm = branches.trunks[0].bn1
        norm.running_mean.fill_(0.5), norm.running_var.fill_(2.0)
    seen = []
    model.peers.trunks[0].conv1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = model.peers.trunk_outputs(VIEWS.double())
    mean, var = torch.full((16,), 0.5, dtype=torch.float64), torch.full((16,), 2.0, dtype=torch.float64)
    for view in seen:  # [4, 16, 32, 32]
        pixels = view.transpose(0, 1).flatten(1)  # [16, 4 * 32 * 32]
        mean, var = 0.9 * mean + 0.1 * pixels.mean(1), 0.9 * var + 0.1 * pixels.var(1)
    assert len(seen) == len(x) == M
    norm = model.peers.trunks[0].bn1
    assert norm.running_mean.allclose(mean, rtol=1e-9) and norm.running_var.allclose(var, rtol=1e-9)
    with torch.no_grad():
        model.mean(VIEWS.double())
    assert model.mean.trunks[0].bn1.running_var.allclose(var, rtol=1e-9)
    alone = models.create_model("resnet8", C).double()
    alone.trunk.load_state_dict(make().double().peers.trunks[0].state_dict())
    for i in range(M):  # a trunk that sees this view alone gives the same
        assert x[i].allclose(alone.trunk(VIEWS[:, i].double()), rtol=1e-9)


def test_the_mean_model_gets_no_gradient_and_keeps_its_own_statistics():
    model = make().train()
    before = {k: v.clone() for k, v in model.mean.state_dict().items()}
    with torch.no_grad():
        for p in model.peers.parameters():
            p.mul_(1.5)
    z, s, z_mean = model(VIEWS)
    assert not z_mean.requires_grad and all(not p.requires_grad for p in model.mean.parameters())
    (z.sum() + s.sum()).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("mean."))
    buffers = dict(model.mean.named_buffers())
    for name, value in model.mean.state_dict().items():
        assert value.equal(before[name]) != (name in buffers), name
        if "running" in name:
            assert not value.equal(model.peers.state_dict()[name]), name


def test_the_ensemble_alone_gives_every_peer_a_gradient():
    """Its logits and that gradient are those of the formula: trunk and head on each view, one linear layer."""
    model, views = make().double(), VIEWS.double()
    weights = {name: p for name, p in model.named_parameters()
               if not name.startswith("mean.") and not re.fullmatch(r"peers\.heads\.\d\.fc\..*", name)}
    _, s, _ = model(views)
    found = torch.autograd.grad(s.square().sum(), weights.values())
    h = [head(model.peers.trunks[0](views[:, i]))[0] for i, head in enumerate(model.peers.heads)]
    z = sum(h[i] @ model.ensemble.weight[:, 64 * i:64 * i + 64].T for i in range(M)) + model.ensemble.bias
    assert s.allclose(z, rtol=1e-9)
    expected = z.square().sum()
    for name, a, b in zip(weights, found, torch.autograd.grad(expected, weights.values()), strict=True):
        assert a.allclose(b, rtol=1e-8, atol=1e-10) and a.any(), name


@pytest.mark.parametrize(("step", "d"), [(1, 0.5), (2, 2 / 3), (998, 998 / 999), (1000, 0.999), (5000, 0.999)])
def test_the_decay_of_a_step(step, d):
    """min(1 - 1/(step + 1), 0.999). The two are equal in step 999. All parameters of the peers differ by 1 before."""
    model = make().double()
    with torch.no_grad():
        for p in model.peers.parameters():
            p.add_(1.0)
    model.update_mean(step)
    for mean, p in zip(model.mean.parameters(), model.peers.parameters(), strict=True):
        assert (p - mean).detach().numpy() == pytest.approx(d, abs=1e-12)
