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


TEACHER = logits(seed=3)


def check(objective, formula, *inputs):
    """objective(*inputs) -> Terms. inputs: tensors [2, ...], of two images.

    formula(x, const, b) -> the true and the group loss of image b, and the factor of the group loss. x: the image's
    values as nested lists; const: the same where they have no gradient.
    """
    leaves = [x.clone().requires_grad_() for x in inputs]
    terms = objective(*leaves)
    images = [[x[b].tolist() for x in inputs] for b in range(2)]
    parts = [formula(x, x, b) for b, x in enumerate(images)]
    for name, values in {"true": [true for true, *_ in parts], "group": [group for _, group, _ in parts],
                         "total": [true + factor * group for true, group, factor in parts]}.items():
        assert terms[name].item() == pytest.approx(sum(values) / 2, rel=1e-12, abs=1e-14), name
    terms.total.backward()
    for k, leaf in enumerate(leaves):
        found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for b, x in enumerate(images):
            def total(values, k=k, b=b, x=x):
                true, group, factor = formula([*x[:k], values, *x[k + 1:]], x, b)
                return true + factor * group

            expected = torch.tensor(slow.gradient(total, x[k]))
            assert 2 * found[b].numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-7)


def true(students, b):
    return sum(slow.cross_entropy(z, LABELS[b].item()) for z in students)


groups = pytest.mark.parametrize("m", [2, 3])
divergences = pytest.mark.parametrize("loss", ["KL", "CE"])


@groups
@divergences
@pytest.mark.parametrize("detached", [False, True])
def test_okddip(m, loss, detached):
    """The targets are not detached by default: their gradient is that of the formula."""
    def formula(x, const, b):
        D, (peers, _, leader), (peers0, targets, _) = slow.DIVERGENCE[loss], x, const if detached else x
        group = sum(D(t, z, T) for t, z in zip(targets, peers, strict=True)) + D(slow.mean(peers0), leader, T)
        return true([*peers, leader], b), T**2 * group, A

    check(lambda *x: losses.okddip_loss(*x, LABELS, W, T, ALPHA, loss, detach_targets=detached), formula,
          logits(m - 1), logits(m - 1, seed=1), logits(seed=2))


@divergences
def test_okddip_without_a_leader(loss):
    check(lambda *x: losses.okddip_loss(*x, None, LABELS, W, T, ALPHA, loss),
          lambda x, const, b: (true(x[0], b),
                               T**2 * sum(slow.DIVERGENCE[loss](t, z, T) for t, z in zip(x[1], x[0], strict=True)), A),
          logits(3), logits(3, seed=1))


@divergences
def test_okddip_with_a_teacher(loss):
    """alpha T^2 KL(teacher || z) for the leader and each peer, without ramp-up, beside the other terms."""
    peers, targets, leader = logits(3), logits(3, seed=1), logits(seed=2)
    without = losses.okddip_loss(peers, targets, leader, LABELS, W, T, ALPHA, loss)
    terms = losses.okddip_loss(peers, targets, leader, LABELS, W, T, ALPHA, loss, TEACHER)
    expected = sum(T**2 * slow.DIVERGENCE[loss](TEACHER[b].tolist(), z, T)
                   for b in range(2) for z in [*peers[b].tolist(), leader[b].tolist()]) / 2
    assert terms.teacher.item() == pytest.approx(expected, rel=1e-12) and "teacher" not in without
    assert (terms.total - without.total).item() == pytest.approx(ALPHA * expected, rel=1e-10)
    assert (terms.true, terms.group) == (without.true, without.group)


@divergences
@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("detached", [False, True])
@groups
def test_dml(m, loss, pairwise, detached):
    """The targets get a gradient; with detach_targets none, as in Zhang et al."""
    check(lambda z: losses.dml_loss(z, LABELS, T, loss, pairwise, detach_targets=detached),
          lambda x, const, b: (true(x[0], b), slow.dml_group(x[0], (const if detached else x)[0], T,
                                                             slow.DIVERGENCE[loss], pairwise), 1.0),
          logits(m))


# name -> objective(*inputs, loss), formula(x, const, b, D), a function of m that makes the inputs
METHODS = {
    "one": (lambda z, e, loss: losses.one_loss(z, e, LABELS, W, T, ALPHA, loss),
            lambda x, const, b, D: (true([*x[0], x[1]], b), T**2 * sum(D(x[1], z, T) for z in x[0]), A),
            lambda m: (logits(m), logits(seed=1))),
    "cl_ilr": (lambda z, t, loss: losses.cl_ilr_loss(z, t, LABELS, W, T, ALPHA, loss),
               lambda x, const, b, D: (true(x[0], b), T**2 * sum(map(lambda t, z: D(t, z, T), x[1], x[0])), A),
               lambda m: (logits(m), logits(m, seed=1))),
    "individual": (lambda z, loss: losses.individual_loss(z, LABELS), lambda x, const, b, D: (true(x[0], b), 0.0, 1.0),
                   lambda m: (logits(m),)),
    "kd": (lambda z, loss: losses.kd_loss(z, TEACHER, LABELS, T, ALPHA, loss),
           lambda x, const, b, D: (true(x, b), T**2 * D(TEACHER[b].tolist(), x[0], T), ALPHA), lambda m: (logits(),)),
    "ffl": (lambda z, s, loss: losses.ffl_loss(z, s, LABELS, W, T, ALPHA, loss),
            lambda x, const, b, D: (*slow.ffl(*x, *const, LABELS[b].item(), T, D), A),
            lambda m: (logits(m), logits(seed=1))),
    "pcl": (lambda z, s, mean, loss: losses.pcl_loss(z, s, mean, LABELS, W, T, ALPHA, loss),
            lambda x, const, b, D: (*slow.pcl(x[0], x[1], const[1], const[2], LABELS[b].item(), T, D), A),
            lambda m: (logits(m), logits(seed=1), logits(m, seed=2))),
    "kdcl": (lambda z, t, loss: losses.kdcl_loss(z, t, LABELS, T, loss),
             lambda x, const, b, D: (*slow.kdcl(x[0], const[1], LABELS[b].item(), T, D), 1.0),
             lambda m: (logits(m), logits(seed=1))),
    "okdph": (lambda z, hybrid, loss: losses.okdph_loss(z, hybrid, LABELS, T, 0.7, 0.9, loss),
              lambda x, const, b, D: (*slow.okdph(*x, *const, LABELS[b].item(), T, 0.7, D), 0.9),
              lambda m: (logits(m), logits(seed=1)))}


@pytest.mark.parametrize("method", METHODS)
@groups
@divergences
def test_a_loss_is_that_of_its_formula(method, m, loss):
    """What stands inside sg gets no gradient, all else does, the targets included."""
    objective, formula, inputs = METHODS[method]
    check(lambda *x: objective(*x, loss), lambda *x: formula(*x, slow.DIVERGENCE[loss]), *inputs(m))


def test_unknown_divergence():
    with pytest.raises(ValueError, match="one of KL, CE, not 'MSE'"):
        losses.kd_loss(logits(), TEACHER, LABELS, loss="MSE")


LOSSES = {  # of students z [B, m, C], another network s [B, C] and labels y
    "okddip": lambda z, s, y: losses.okddip_loss(z, z.flip(1), s, y),
    "okddip without a leader": lambda z, s, y: losses.okddip_loss(z, z.flip(1), None, y),
    "okddip with a teacher": lambda z, s, y: losses.okddip_loss(z, z.flip(1), s, y, teacher=z[:, 1]),
    "one": lambda z, s, y: losses.one_loss(z, s, y), "kd": lambda z, s, y: losses.kd_loss(s, z[:, 0], y),
    "individual": lambda z, s, y: losses.individual_loss(z, y), "one net": lambda z, s, y: losses.individual_loss(s, y),
    "cl_ilr": lambda z, s, y: losses.cl_ilr_loss(z, z.flip(1), y), "dml": lambda z, s, y: losses.dml_loss(z, y),
    "dml, pairwise": lambda z, s, y: losses.dml_loss(z, y, pairwise=True),
    "ffl": lambda z, s, y: losses.ffl_loss(z, s, y), "pcl": lambda z, s, y: losses.pcl_loss(z, s, z.flip(1), y),
    "kdcl": lambda z, s, y: losses.kdcl_loss(z, s, y), "okdph": lambda z, s, y: losses.okdph_loss(z, s, y)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_loss_computes_in_float32(name, half):
    """The loss of half-precision logits is that of the same numbers in float32, to the bit: means included."""
    z, s = logits(3).to(half), logits(seed=1).to(half)
    expected = LOSSES[name](z.float(), s.float(), LABELS)
    for term, found in LOSSES[name](z, s, LABELS).items():
        assert found.dtype == torch.float32 and found.equal(expected[term])


@pytest.mark.parametrize("name", LOSSES)
def test_labels_may_be_probabilities(name):
    """One-hot ones give the loss of class numbers; a mixture of labels gives the mixture of their losses."""
    z, s, other = logits(3), logits(seed=1), torch.tensor([1, 0])
    a, b = (LOSSES[name](z, s, labels) for labels in (LABELS, other))
    one_hot_a, one_hot_b = (F.one_hot(labels, 4).double() for labels in (LABELS, other))
    one_hot, mixed = (LOSSES[name](z, s, labels) for labels in (one_hot_a, 0.3 * one_hot_a + 0.7 * one_hot_b))
    for term in a:
        torch.testing.assert_close(one_hot[term], a[term])
        torch.testing.assert_close(mixed[term], 0.3 * a[term] + 0.7 * b[term])


@pytest.mark.parametrize("rule", [*TARGETS.values(), lambda z, y: error_products(z.log_softmax(-1), y)])
def test_the_labels_of_a_target_may_be_one_hot(rule):
    torch.testing.assert_close(rule(logits(3), F.one_hot(LABELS, 4).double()), rule(logits(3), LABELS))


def test_smoothed_labels_give_pytorchs_label_smoothing():
    z = logits(3)
    expected = sum(F.cross_entropy(student, LABELS, label_smoothing=0.1) for student in z.unbind(1))
    torch.testing.assert_close(losses.true_loss(z, 0.9 * F.one_hot(LABELS, 4).double() + 0.1 / 4), expected)


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
