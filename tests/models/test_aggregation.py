import math

import pytest
import slow
import torch

import models
from models.aggregation import AGGREGATIONS, Attention, Gate, divide_gradient, others_mean


@pytest.mark.parametrize("p", [1, 2, 3, 7])
def test_attention_is_the_papers_definition(p):
    """alpha_ab = exp((W_L h_a).(W_E h_b)) / sum_f exp((W_L h_a).(W_E h_f)), computed one number at a time."""
    torch.manual_seed(0)
    B, D = 4, 48  # not 8 * 8
    attention = Attention(D).double()
    h = torch.randn(B, p, D, dtype=torch.float64)
    alpha = attention(h, None)
    W_L, W_E = attention.W_L.weight.tolist(), attention.W_E.weight.tolist()
    assert len(W_L) == len(W_E) == D // 8
    assert attention.W_L.bias is None and attention.W_E.bias is None

    def times(W, v):
        return [sum(w * x for w, x in zip(row, v, strict=True)) for row in W]

    for b in range(B):
        for i in range(p):
            L = times(W_L, h[b, i].tolist())
            scores = [sum(x * y for x, y in zip(L, times(W_E, h[b, j].tolist()), strict=True)) for j in range(p)]
            total = sum(math.exp(s) for s in scores)
            assert alpha[b, i].tolist() == pytest.approx([math.exp(s) / total for s in scores], rel=1e-10)
    assert alpha.sum(-1).allclose(torch.ones(B, p, dtype=torch.float64))


def test_attention_is_asymmetric():
    torch.manual_seed(0)
    alpha = Attention(64)(torch.randn(1, 3, 64), None)[0]
    assert not alpha.allclose(alpha.T, atol=1e-3)


def weights(name, p=3, training=True):
    torch.manual_seed(0)
    h, z = torch.randn(4, p, 48, dtype=torch.float64), 3 * torch.randn(4, p, 10, dtype=torch.float64)
    module = AGGREGATIONS[name](48).double().train(training)
    return module, h, z, module(h, z)


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("p", [1, 2, 7])
@pytest.mark.parametrize("training", [True, False])
def test_weights_are_distributions_over_the_peers(name, p, training):
    p += name == "others" and p == 1  # a single peer has no others
    alpha = weights(name, p, training)[-1]
    assert alpha.shape == (4, p, p) and (alpha >= 0).all()
    assert alpha.sum(-1).allclose(torch.ones(4, p, dtype=torch.float64))


def test_mean_weights():
    assert (weights("mean")[-1] == 1 / 3).all()


def test_random_weights_are_new_but_seeded():
    module, h, z, alpha = weights("random")
    again = module(h, z)
    assert not again.allclose(alpha) and not alpha[0].allclose(alpha[1])
    torch.manual_seed(5)
    first = module(h, z)
    torch.manual_seed(5)
    assert module(h, z).equal(first)


def test_random_weights_use_no_random_numbers_in_evaluation():
    module, h, z, _ = weights("random", training=False)
    before = torch.get_rng_state()
    assert (module(h, z) == 1 / 3).all() and torch.get_rng_state().equal(before)


def test_entropy_weights():
    """softmax over b of -H(b), H(b) = -sum_c p_c log p_c: the same for every a, larger for a more confident peer."""
    _, _, z, alpha = weights("entropy")
    for b in range(4):
        entropies = [-sum(p * math.log(p) for p in torch.softmax(peer, 0).tolist()) for peer in z[b]]
        total = sum(math.exp(-e) for e in entropies)
        for a in range(3):
            assert alpha[b, a].tolist() == pytest.approx([math.exp(-e) / total for e in entropies], rel=1e-9)


def test_symmetric_attention():
    """softmax over b of (W_L h_a) . (W_L h_b): one projection for both sides."""
    module, h, _, alpha = weights("symmetric")
    assert [(name, list(p.shape)) for name, p in module.named_parameters()] == [("W_L.weight", [6, 48])]
    L = h[0] @ module.W_L.weight.T
    for a in range(3):
        scores = [math.exp(sum(x * y for x, y in zip(L[a].tolist(), L[b].tolist(), strict=True))) for b in range(3)]
        assert alpha[0, a].tolist() == pytest.approx([s / sum(scores) for s in scores], rel=1e-9)


@pytest.mark.parametrize("p", [2, 3, 7])
def test_attention_to_the_others(p):
    """The values, and the gradients of a weighted sum with respect to W_L, W_E and h."""
    module, h, _, _ = weights("others", p)
    inputs = [module.W_L.weight, module.W_E.weight, h.requires_grad_()]
    alpha = module(h, None)
    assert (alpha.diagonal(dim1=1, dim2=2) == 0).all()
    if p == 2:
        assert alpha.equal(torch.eye(2, dtype=alpha.dtype).flip(0).expand(4, 2, 2))
    W_L, W_E = (W.detach().clone().requires_grad_() for W in inputs[:2])
    h_slow = h.detach().clone().requires_grad_()
    expected = torch.stack([torch.stack([torch.stack(row) for row in slow.attention_to_others(W_L, W_E, features)])
                            for features in h_slow])
    assert alpha.allclose(expected, rtol=1e-10, atol=1e-15)
    by = torch.randn(4, p, p, dtype=torch.float64)
    for ours, theirs in zip(torch.autograd.grad((alpha * by).sum(), inputs),
                            torch.autograd.grad((expected * by).sum(), [W_L, W_E, h_slow]), strict=True):
        assert ours.allclose(theirs, rtol=1e-9, atol=1e-12) and (p == 2 or ours.abs().max() > 1e-3)


def test_a_single_peer_has_no_others():
    with pytest.raises(ValueError, match="at least 2 peers, not 1"):
        models.OKDDip("resnet8", 10, 2, aggregation="others")
    peers, alpha, leader = models.OKDDip("resnet8", 10, 2, aggregation="others", leader=False).attend(
        torch.zeros(2, 3, 32, 32))
    assert alpha.tolist() == [[[0, 1], [1, 0]]] * 2 and leader is None


def test_gate_is_a_distribution_over_branches():
    torch.manual_seed(0)
    gate = Gate(8, 3).double().eval()
    gate.norm.running_mean.normal_()
    gate.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    g = gate(x)
    for b in range(2):
        pooled = [sum(sum(row) for row in channel) / 16 for channel in x[b].tolist()]
        scores = []
        for i in range(3):
            s = sum(w * v for w, v in zip(gate.linear.weight[i].tolist(), pooled, strict=True))
            s += gate.linear.bias[i].item() - gate.norm.running_mean[i].item()
            scores.append(math.exp(max(0.0, s / math.sqrt(gate.norm.running_var[i] + gate.norm.eps))))
        assert g[b].tolist() == pytest.approx([s / sum(scores) for s in scores], rel=1e-10)


@pytest.mark.parametrize("m", [2, 3, 8])
def test_others_mean(m):
    z = torch.randn(4, m, 5, dtype=torch.float64)
    t = others_mean(z)
    for i in range(m):
        assert t[:, i].allclose(torch.stack([z[:, j] for j in range(m) if j != i]).mean(0))


def test_divide_gradient():
    x = torch.randn(3, 4, requires_grad=True)
    y = divide_gradient(x, 4)
    assert y.equal(x)
    (y**2).sum().backward()
    assert x.grad.equal(2 * x.detach() / 4)
