import math

import pytest
import slow
import torch

import models
from models.aggregation import AGGREGATIONS, Gate


def weights(name, p=3, training=True):
    torch.manual_seed(0)
    h, z = torch.randn(4, p, 48, dtype=torch.float64), 3 * torch.randn(4, p, 10, dtype=torch.float64)
    module = AGGREGATIONS[name](48).double().train(training)
    return module, h, z, module(h, z)


@pytest.mark.parametrize("p", [1, 2, 7])
@pytest.mark.parametrize("name", ["attention", "symmetric", "others"])
def test_attention_is_that_of_its_formula(name, p):
    """The values, and the gradients of a weighted sum with respect to W_L, W_E and h."""
    p += name == "others" and p == 1  # a single peer has no others
    module, h, _, _ = weights(name, p)
    assert [list(W.shape) for W in module.parameters()] == [[6, 48]] * (1 if name == "symmetric" else 2)
    inputs = [*module.parameters(), h.requires_grad_()]
    alpha = module(h, None)
    *W, h_slow = (x.detach().clone().requires_grad_() for x in inputs)
    rows = [slow.attention(W[0], W[-1], image, name == "others") for image in h_slow]
    expected = torch.stack([torch.stack([torch.stack(row) for row in image]) for image in rows])
    assert alpha.allclose(expected, rtol=1e-10, atol=1e-15)
    by = torch.randn(4, p, p, dtype=torch.float64)
    found = torch.autograd.grad((alpha * by).sum(), inputs)
    for ours, theirs in zip(found, torch.autograd.grad((expected * by).sum(), [*W, h_slow]), strict=True):
        assert ours.allclose(theirs, rtol=1e-9, atol=1e-12)
    assert p <= 2 or all(gradient.abs().max() > 1e-3 for gradient in found)


def test_random_weights_are_new_in_training_and_their_mean_in_evaluation():
    """Evaluation uses no random numbers."""
    module, h, z, alpha = weights("random")
    assert (alpha > 0).all() and alpha.sum(-1).allclose(torch.ones(4, 3, dtype=torch.float64))
    assert not module(h, z).allclose(alpha) and not alpha[0].allclose(alpha[1])
    torch.manual_seed(5)
    first = module(h, z)
    torch.manual_seed(5)
    assert module(h, z).equal(first)
    before = torch.get_rng_state()
    assert (module.eval()(h, z) == 1 / 3).all() and torch.get_rng_state().equal(before)
    assert (weights("mean")[-1] == 1 / 3).all()
    alpha = module.train()(torch.zeros(4000, 3, 48), None)  # the softmax of normal numbers: log(a / b) ~ N(0, 2)
    assert (alpha[..., 0] / alpha[..., 1]).log().std().item() == pytest.approx(2**0.5, rel=0.05)


def test_entropy_weights():
    """softmax over b of -H(b), H(b) = -sum_c p_c log p_c: the same for every a, larger for a more confident peer."""
    _, _, z, alpha = weights("entropy")
    for b in range(4):
        entropies = [-sum(p * math.log(p) for p in slow.softmax(peer)) for peer in z[b].tolist()]
        expected = slow.softmax([-e for e in entropies])
        assert alpha[b].tolist() == [pytest.approx(expected, rel=1e-9)] * 3


def test_a_single_peer_has_no_others():
    with pytest.raises(ValueError, match="at least 2 peers, not 1"):
        models.OKDDip("resnet8", 10, 2, aggregation="others")
    _, alpha, leader = models.OKDDip("resnet8", 10, 2, aggregation="others", leader=False).attend(
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
            scores.append(max(0.0, s / math.sqrt(gate.norm.running_var[i] + gate.norm.eps)))
        assert g[b].tolist() == pytest.approx(slow.softmax(scores), rel=1e-10)
