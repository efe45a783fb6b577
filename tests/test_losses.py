"""Each loss is compared with the formula of its paper, computed one number at a time in slow.py: its terms, and the
gradient of its total by finite differences."""

import pytest
import slow
import torch
from torch.nn import functional as F

import losses
from models.kdcl import TARGETS, error_products

T, ALPHA, W, A = 3.0, 0.7, 0.37, 0.7 * 0.37  # A: the factor of a group loss
LABELS = torch.tensor([2, 0])  # of two images with four classes


def logits(*shape, seed=0):
    return 3 * torch.randn(2, *shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def total(terms, factors):
    return sum(factor * term for factor, term in zip(factors, terms, strict=True))


def check(objective, formula, factors, inputs):
    """objective(*inputs) -> Terms. inputs: tensors [2, ...], of two images.

    formula(x, const, b) -> the terms of image b: true, group, teacher. factors: theirs in the total. x: the image's
    values as nested lists; const: the same where they have no gradient.
    """
    leaves = [x.clone().requires_grad_() for x in inputs]
    terms = objective(*leaves)
    images = [[x[b].tolist() for x in inputs] for b in range(2)]
    parts = [formula(x, x, b) for b, x in enumerate(images)]
    assert list(terms) == ["total", "true", "group", "teacher"][:1 + len(factors)]
    for name, *values in zip([*terms][1:], *parts, strict=True):
        assert terms[name].item() == pytest.approx(sum(values) / 2, rel=1e-12, abs=1e-14), name
    assert terms.total.item() == pytest.approx(sum(total(part, factors) for part in parts) / 2, rel=1e-12, abs=1e-14)
    terms.total.backward()
    for k, leaf in enumerate(leaves):
        found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for b, x in enumerate(images):
            def loss(values, k=k, b=b, x=x):
                return total(formula([*x[:k], values, *x[k + 1:]], x, b), factors)

            expected = torch.tensor(slow.gradient(loss, x[k]))
            assert 2 * found[b].numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-7)


def true(students, b):
    return sum(slow.cross_entropy(z, LABELS[b].item()) for z in students)


def taught(targets, students, D):
    return T**2 * sum(D(t, z, T) for t, z in zip(targets, students, strict=True))


def okddip_terms(x, const, b, D):
    """const: x, if the targets and the mean of the peers have a gradient."""
    (peers, _, leader, *teacher), (peers0, targets, *_) = x, const
    group = taught([*targets, slow.mean(peers0)], [*peers, leader], D)
    return true([*peers, leader], b), group, *(taught([t] * (len(peers) + 1), [*peers, leader], D) for t in teacher)


def okddip(detached):
    return (lambda z, t, leader, y, loss: losses.okddip_loss(z, t, leader, y, W, T, ALPHA, loss, None, detached),
            lambda x, const, b, D: okddip_terms(x, const if detached else x, b, D), (1, A),
            lambda m: (*two(m - 1), logits(seed=2)))


def dml(pairwise, detached):
    return (lambda z, y, loss: losses.dml_loss(z, y, T, loss, pairwise, detached),
            lambda x, const, b, D: (true(x[0], b), slow.dml_group(x[0], (const if detached else x)[0], T, D, pairwise)),
            (1, 1), lambda m: (logits(m),))


def two(m):
    return logits(m), logits(m, seed=1)


def with_network(m):
    return logits(m), logits(seed=1)


# name -> objective(*inputs, labels, loss), formula(x, const, b, D), the factors of its terms, m -> inputs
METHODS = {
    "okddip": okddip(False), "okddip, detached": okddip(True),
    "okddip with a teacher": (
        lambda z, t, leader, teacher, y, loss: losses.okddip_loss(z, t, leader, y, W, T, ALPHA, loss, teacher),
        lambda x, const, b, D: okddip_terms(x, x, b, D), (1, A, ALPHA),
        lambda m: (*two(m - 1), logits(seed=2), logits(seed=3))),
    "okddip without a leader": (lambda z, t, y, loss: losses.okddip_loss(z, t, None, y, W, T, ALPHA, loss),
                                lambda x, const, b, D: (true(x[0], b), taught(x[1], x[0], D)), (1, A), two),
    "one": (lambda z, e, y, loss: losses.one_loss(z, e, y, W, T, ALPHA, loss),
            lambda x, const, b, D: (true([*x[0], x[1]], b), taught([x[1]] * len(x[0]), x[0], D)), (1, A), with_network),
    "cl_ilr": (lambda z, t, y, loss: losses.cl_ilr_loss(z, t, y, W, T, ALPHA, loss),
               lambda x, const, b, D: (true(x[0], b), taught(x[1], x[0], D)), (1, A), two),
    "individual": (lambda z, y, loss: losses.individual_loss(z, y), lambda x, const, b, D: (true(x[0], b), 0.0),
                   (1, 1), lambda m: (logits(m),)),
    "one network": (lambda z, y, loss: losses.individual_loss(z, y), lambda x, const, b, D: (true(x, b), 0.0),
                    (1, 1), lambda m: (logits(),)),
    "kd": (lambda z, t, y, loss: losses.kd_loss(z, t, y, T, ALPHA, loss),
           lambda x, const, b, D: (true(x[:1], b), taught(x[1:], x[:1], D)), (1, ALPHA),
           lambda m: (logits(), logits(seed=1))),
    "dml": dml(False, False), "dml, detached": dml(False, True),
    "dml, pairwise": dml(True, False), "dml, pairwise, detached": dml(True, True),
    "ffl": (lambda z, s, y, loss: losses.ffl_loss(z, s, y, W, T, ALPHA, loss),
            lambda x, const, b, D: slow.ffl(*x, *const, LABELS[b].item(), T, D), (1, A), with_network),
    "pcl": (lambda z, s, mean, y, loss: losses.pcl_loss(z, s, mean, y, W, T, ALPHA, loss),
            lambda x, const, b, D: slow.pcl(*x[:2], *const[1:], LABELS[b].item(), T, D), (1, A),
            lambda m: (*with_network(m), logits(m, seed=2))),
    "kdcl": (lambda z, t, y, loss: losses.kdcl_loss(z, t, y, T, loss),
             lambda x, const, b, D: slow.kdcl(x[0], const[1], LABELS[b].item(), T, D), (1, 1), with_network),
    "okdph": (lambda z, hybrid, y, loss: losses.okdph_loss(z, hybrid, y, T, 0.7, 0.9, loss),
              lambda x, const, b, D: slow.okdph(*x, *const, LABELS[b].item(), T, 0.7, D), (1, 0.9), with_network)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("loss", ["KL", "CE"])
def test_a_loss_is_that_of_its_formula(method, m, loss):
    """What stands inside sg gets no gradient, all else does, the targets included."""
    objective, formula, factors, inputs = METHODS[method]
    check(lambda *x: objective(*x, LABELS, loss), lambda *x: formula(*x, slow.DIVERGENCE[loss]), factors, inputs(m))


def test_unknown_divergence():
    with pytest.raises(ValueError, match="one of KL, CE, not 'MSE'"):
        losses.kd_loss(logits(), logits(seed=1), LABELS, loss="MSE")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_loss_computes_in_float32(method, half):
    """The loss of half-precision logits is that of the same numbers in float32, to the bit: means included."""
    objective, *_, inputs = METHODS[method]
    x = [z.to(half) for z in inputs(3)]
    expected = objective(*(z.float() for z in x), LABELS, "KL")
    for term, found in objective(*x, LABELS, "KL").items():
        assert found.dtype == torch.float32 and found.equal(expected[term])


@pytest.mark.parametrize("method", METHODS)
def test_labels_may_be_probabilities(method):
    """One-hot ones give the loss of class numbers; a mixture of labels gives the mixture of their losses."""
    objective, *_, inputs = METHODS[method]
    x, other = inputs(3), torch.tensor([1, 0])
    one_hot_a, one_hot_b = (F.one_hot(labels, 4).double() for labels in (LABELS, other))
    a, b, one_hot, mixed = (objective(*x, labels, "KL")
                            for labels in (LABELS, other, one_hot_a, 0.3 * one_hot_a + 0.7 * one_hot_b))
    for term in a:
        torch.testing.assert_close(one_hot[term], a[term])
        torch.testing.assert_close(mixed[term], 0.3 * a[term] + 0.7 * b[term])


@pytest.mark.parametrize("rule", [*TARGETS.values(), lambda z, y: error_products(z.log_softmax(-1), y)])
def test_the_labels_of_a_target_may_be_one_hot(rule):
    torch.testing.assert_close(rule(logits(3), F.one_hot(LABELS, 4).double()), rule(logits(3), LABELS))


def test_a_term_that_the_loss_does_not_have():
    terms = losses.individual_loss(logits(3), LABELS)
    assert terms.group is terms["group"] and list(terms) == ["total", "true", "group"]
    with pytest.raises(AttributeError, match="no term 'teacher'; it has total, true, group"):
        _ = terms.teacher


LOWEST, MIDDLE = 0.006737946999085467, 0.2865047968601901  # exp(-5), exp(-5/4)


@pytest.mark.parametrize(("start", "length", "expected"), [
    (0.0, 80, {0: LOWEST, 40: MIDDLE, 80: 1, 299: 1}),
    (0.1, 80, {0: 1, 29: 1, 30: LOWEST, 70: MIDDLE, 110: 1}),
    (0.07, 80, {20: 1, 21: LOWEST}),  # in floating point 0.07 * 300 is 21.000000000000004
    (0.0, 0, {0: 1, 1: 1, 299: 1})])
def test_ramp_up(start, length, expected):
    for epoch, weight in expected.items():
        assert losses.ramp_up(epoch, 300, start, length) == pytest.approx(weight, rel=1e-15), epoch
