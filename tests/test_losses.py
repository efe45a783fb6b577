"""Each loss is compared with the formula of its paper, computed one number at a time in slow.py."""

import pytest
import slow
import torch

import losses

B, C, T, ALPHA, W = 5, 7, 3.0, 0.7, 0.37


def logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 6, 3, 3, 1])
groups = pytest.mark.parametrize("m", [2, 3, 8])
divergences = pytest.mark.parametrize("loss", ["KL", "CE"])


def check(terms, true, group, weight):
    """true, group: functions of the index of an image. Here they are averaged over the batch."""
    expected_true = sum(true(b) for b in range(B)) / B
    expected_group = sum(group(b) for b in range(B)) / B
    assert terms.true.item() == pytest.approx(expected_true, rel=1e-12)
    assert terms.group.item() == pytest.approx(expected_group, rel=1e-12, abs=1e-14)
    assert terms.total.item() == pytest.approx(expected_true + weight * expected_group, rel=1e-12)


@groups
@divergences
def test_okddip(m, loss):
    peers, targets, leader = logits(B, m - 1, C), logits(B, m - 1, C, seed=1), logits(B, C, seed=2)
    divergence = slow.DIVERGENCE[loss]
    p, t, g, y = peers.tolist(), targets.tolist(), leader.tolist(), LABELS.tolist()
    check(
        losses.okddip_loss(peers, targets, leader, LABELS, W, T, ALPHA, loss),
        lambda b: sum(slow.cross_entropy(z, y[b]) for z in p[b]) + slow.cross_entropy(g[b], y[b]),
        lambda b: T**2 * (sum(divergence(t[b][a], p[b][a], T) for a in range(m - 1))
                          + divergence(slow.mean(p[b]), g[b], T)),
        ALPHA * W,
    )


@divergences
def test_okddip_without_a_leader(loss):
    peers, targets = logits(B, 4, C), logits(B, 4, C, seed=1)
    p, t, y = peers.tolist(), targets.tolist(), LABELS.tolist()
    check(
        losses.okddip_loss(peers, targets, None, LABELS, W, T, ALPHA, loss),
        lambda b: sum(slow.cross_entropy(z, y[b]) for z in p[b]),
        lambda b: T**2 * sum(slow.DIVERGENCE[loss](t[b][a], p[b][a], T) for a in range(4)),
        ALPHA * W,
    )


@divergences
def test_okddip_with_a_teacher(loss):
    """alpha T^2 KL(teacher || z) for the leader and each peer, without ramp-up."""
    peers, targets = logits(B, 3, C), logits(B, 3, C, seed=1)
    leader, teacher = logits(B, C, seed=2), logits(B, C, seed=3)
    without = losses.okddip_loss(peers, targets, leader, LABELS, W, T, ALPHA, loss)
    terms = losses.okddip_loss(peers, targets, leader, LABELS, W, T, ALPHA, loss, teacher)
    expected = sum(
        T**2 * slow.DIVERGENCE[loss](t, z, T)
        for t, students, g in zip(teacher.tolist(), peers.tolist(), leader.tolist(), strict=True)
        for z in [*students, g]) / B
    assert (terms.total - without.total).item() == pytest.approx(ALPHA * expected, rel=1e-10)
    assert terms.teacher.item() == pytest.approx(expected, rel=1e-12) and "teacher" not in without
    assert (terms.true, terms.group) == (without.true, without.group)


@groups
@divergences
def test_one(m, loss):
    branches, ensemble = logits(B, m, C), logits(B, C, seed=1)
    z, e, y = branches.tolist(), ensemble.tolist(), LABELS.tolist()
    check(
        losses.one_loss(branches, ensemble, LABELS, W, T, ALPHA, loss),
        lambda b: sum(slow.cross_entropy(z[b][i], y[b]) for i in range(m)) + slow.cross_entropy(e[b], y[b]),
        lambda b: T**2 * sum(slow.DIVERGENCE[loss](e[b], z[b][i], T) for i in range(m)),
        ALPHA * W,
    )


@groups
@divergences
def test_cl_ilr(m, loss):
    branches, targets = logits(B, m, C), logits(B, m, C, seed=1)
    z, t, y = branches.tolist(), targets.tolist(), LABELS.tolist()
    check(
        losses.cl_ilr_loss(branches, targets, LABELS, W, T, ALPHA, loss),
        lambda b: sum(slow.cross_entropy(z[b][i], y[b]) for i in range(m)),
        lambda b: T**2 * sum(slow.DIVERGENCE[loss](t[b][i], z[b][i], T) for i in range(m)),
        ALPHA * W,
    )


@groups
@divergences
@pytest.mark.parametrize("pairwise", [False, True])
def test_dml(m, loss, pairwise):
    branches = logits(B, m, C)
    z, y, divergence = branches.tolist(), LABELS.tolist(), slow.DIVERGENCE[loss]
    check(
        losses.dml_loss(branches, LABELS, T, loss, pairwise),
        lambda b: sum(slow.cross_entropy(z[b][i], y[b]) for i in range(m)),
        lambda b: slow.dml_group(z[b], z[b], T, divergence, pairwise),
        1.0,
    )


@divergences
def test_kd(loss):
    student, teacher = logits(B, C), logits(B, C, seed=1)
    z, t, y = student.tolist(), teacher.tolist(), LABELS.tolist()
    check(
        losses.kd_loss(student, teacher, LABELS, T, ALPHA, loss),
        lambda b: slow.cross_entropy(z[b], y[b]),
        lambda b: T**2 * slow.DIVERGENCE[loss](t[b], z[b], T),
        ALPHA,
    )


@groups
def test_individual(m):
    branches = logits(B, m, C)
    z, y = branches.tolist(), LABELS.tolist()
    check(
        losses.individual_loss(branches, LABELS),
        lambda b: sum(slow.cross_entropy(z[b][i], y[b]) for i in range(m)),
        lambda b: 0.0,
        1.0,
    )


def test_defaults():
    """Weight 1, temperature 3, alpha 1 and KL; the mean of the others for DML. KDCL and OKDPH have their papers'."""
    z, t, e, g = logits(B, 3, C), logits(B, 3, C, seed=1), logits(B, C, seed=2), logits(B, C, seed=3)
    assert losses.okddip_loss(z, t, g, LABELS) == losses.okddip_loss(z, t, g, LABELS, 1.0, 3.0, 1.0, "KL")
    assert losses.one_loss(z, e, LABELS) == losses.one_loss(z, e, LABELS, 1.0, 3.0, 1.0, "KL")
    assert losses.cl_ilr_loss(z, t, LABELS) == losses.cl_ilr_loss(z, t, LABELS, 1.0, 3.0, 1.0, "KL")
    assert losses.dml_loss(z, LABELS) == losses.dml_loss(z, LABELS, 3.0, "KL", pairwise=False)
    assert losses.kd_loss(g, e, LABELS) == losses.kd_loss(g, e, LABELS, 3.0, 1.0, "KL")
    assert losses.ffl_loss(z, e, LABELS) == losses.ffl_loss(z, e, LABELS, 1.0, 3.0, 1.0, "KL")
    assert losses.pcl_loss(z, e, t, LABELS) == losses.pcl_loss(z, e, t, LABELS, 1.0, 3.0, 1.0, "KL")
    assert losses.kdcl_loss(z, e, LABELS) == losses.kdcl_loss(z, e, LABELS, 2.0, "KL")
    assert losses.okdph_loss(z, e, LABELS) == losses.okdph_loss(z, e, LABELS, 4.0, 0.8, 0.8, "KL")
    assert losses.distillation(t, z, 2.0) == losses.distillation(t, z, 2.0, "KL")


def test_unknown_divergence():
    with pytest.raises(ValueError, match="one of KL, CE, not 'MSE'"):
        losses.kd_loss(logits(B, C), logits(B, C), LABELS, loss="MSE")


TEACHER = logits(B, C, seed=3).double()


def double(*shape, seed):
    return logits(*shape, seed=seed).double().requires_grad_()


@pytest.mark.parametrize("loss", losses.DISTILLATION)
@pytest.mark.parametrize("objective", [
    lambda z, t, e, loss: losses.okddip_loss(z, t, e, LABELS, W, T, ALPHA, loss),
    lambda z, t, e, loss: losses.okddip_loss(z, t, None, LABELS, W, T, ALPHA, loss),
    lambda z, t, e, loss: losses.okddip_loss(z, t, e, LABELS, W, T, ALPHA, loss, teacher=TEACHER),
    lambda z, t, e, loss: losses.one_loss(z, e, LABELS, W, T, ALPHA, loss),
    lambda z, t, e, loss: losses.cl_ilr_loss(z, t, LABELS, W, T, ALPHA, loss),
    lambda z, t, e, loss: losses.dml_loss(z, LABELS, T, loss),
    lambda z, t, e, loss: losses.dml_loss(z, LABELS, T, loss, pairwise=True),
    lambda z, t, e, loss: losses.kd_loss(e, TEACHER, LABELS, T, ALPHA, loss)])
def test_gradients_flow_through_the_targets(objective, loss):
    """The gradient is that of the formula, measured by finite differences: nothing is detached."""
    inputs = double(B, 3, C, seed=0), double(B, 3, C, seed=1), double(B, C, seed=2)
    assert torch.autograd.gradcheck(lambda *x: objective(*x, loss).total, inputs)


@pytest.mark.parametrize("loss", losses.DISTILLATION)
@pytest.mark.parametrize("with_leader", [True, False])
def test_detached_targets(loss, with_leader):
    """The loss stays the same. Its gradients are those of the formula with constant targets."""
    peers, targets, leader = double(B, 3, C, seed=0), double(B, 3, C, seed=1), double(B, C, seed=2)
    t, mean_of_peers = targets.detach().clone(), peers.detach().mean(1)
    students = [*peers.unbind(1), *([leader] if with_leader else [])]
    taught_by = [*t.unbind(1), *([mean_of_peers] if with_leader else [])]
    expected = 0
    for z, target in zip(students, taught_by, strict=True):
        for b in range(B):
            log_q, p = torch.log_softmax(z[b] / T, 0), torch.softmax(target[b] / T, 0)
            divergence = (p * ((p.log() if loss == "KL" else 0) - log_q)).sum()
            expected = expected + (ALPHA * W * T**2 * divergence - torch.log_softmax(z[b], 0)[LABELS[b]]) / B
    leader_or_none = leader if with_leader else None
    terms = losses.okddip_loss(peers, targets, leader_or_none, LABELS, W, T, ALPHA, loss, detach_targets=True)
    assert terms == losses.okddip_loss(peers, targets, leader_or_none, LABELS, W, T, ALPHA, loss)
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-12)
    inputs = [peers, leader] if with_leader else [peers]
    for ours, theirs in zip(torch.autograd.grad(terms.total, inputs, retain_graph=True),
                            torch.autograd.grad(expected, inputs), strict=True):
        assert ours.allclose(theirs, rtol=1e-10, atol=1e-14)
    terms.total.backward()
    assert targets.grad is None


def check_total_and_gradients(objective, formula, inputs):
    """formula(image's values, image's values as constants, b) -> its loss. inputs: tensors [n, ...] of n images."""
    n = len(inputs[0])
    leaves = [x.clone().requires_grad_() for x in inputs]
    total = objective(*leaves).total
    images = [[x[b].tolist() for x in inputs] for b in range(n)]
    assert total.item() == pytest.approx(sum(formula(x, x, b) for b, x in enumerate(images)) / n, rel=1e-12)
    total.backward()
    for k, leaf in enumerate(leaves):
        found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for b, x in enumerate(images):
            expected = slow.gradient(lambda v, x=x, b=b, k=k: formula([*x[:k], v, *x[k + 1:]], x, b), x[k])
            assert n * found[b].numpy() == pytest.approx(torch.tensor(expected).numpy(), rel=1e-5, abs=1e-7)


TWO = torch.tensor([2, 0])  # labels of two images with four classes


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("m", [2, 3])
@divergences
def test_dml_with_detached_targets(m, loss, pairwise):
    """The targets get no gradient, as in Zhang et al."""
    D = slow.DIVERGENCE[loss]
    check_total_and_gradients(
        lambda z: losses.dml_loss(z, TWO, T, loss, pairwise, detach_targets=True),
        lambda x, const, b: (sum(slow.cross_entropy(z, TWO[b].item()) for z in x[0])
                             + slow.dml_group(x[0], const[0], T, D, pairwise)),
        [logits(2, m, 4)])


@pytest.mark.parametrize("m", [2, 3])
@divergences
def test_ffl(m, loss):
    """sg mean_i z_i and sg s get no gradient."""
    D = slow.DIVERGENCE[loss]
    check_total_and_gradients(
        lambda z, s: losses.ffl_loss(z, s, TWO, W, T, ALPHA, loss),
        lambda x, const, b: slow.ffl(*x, *const, TWO[b].item(), ALPHA * W, T, D),
        [logits(2, m, 4), logits(2, 4, seed=1)])


@pytest.mark.parametrize("m", [2, 3])
@divergences
def test_pcl(m, loss):
    """sg s gets no gradient, the mean peers z' none at all."""
    D = slow.DIVERGENCE[loss]
    check_total_and_gradients(
        lambda z, s, mean_peers: losses.pcl_loss(z, s, mean_peers, TWO, W, T, ALPHA, loss),
        lambda x, const, b: slow.pcl(x[0], x[1], const[1], const[2], TWO[b].item(), ALPHA * W, T, D),
        [logits(2, m, 4), logits(2, 4, seed=1), logits(2, m, 4, seed=2)])


@pytest.mark.parametrize("m", [2, 3])
@divergences
def test_kdcl(m, loss):
    """sg t gets no gradient."""
    D = slow.DIVERGENCE[loss]
    check_total_and_gradients(
        lambda z, t: losses.kdcl_loss(z, t, TWO, T, loss),
        lambda x, const, b: slow.kdcl(x[0], const[1], TWO[b].item(), T, D),
        [logits(2, m, 4), logits(2, 4, seed=1)])


@pytest.mark.parametrize("m", [2, 3])
@divergences
def test_okdph(m, loss):
    """The target, the mean of all logits, gets no gradient. The hybrid gets that of its cross-entropy."""
    D = slow.DIVERGENCE[loss]
    check_total_and_gradients(
        lambda z, hybrid: losses.okdph_loss(z, hybrid, TWO, T, 0.7, 0.9, loss),
        lambda x, const, b: slow.okdph(*x, *const, TWO[b].item(), T, 0.7, 0.9, D),
        [logits(2, m, 4), logits(2, 4, seed=1)])


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.006737946999085467), (40, 0.2865047968601901), (80, 1), (299, 1)])
def test_ramp_up(epoch, weight):
    """exp(-5), exp(-5/4), 1, 1"""
    assert losses.ramp_up(epoch, 300) == pytest.approx(weight, rel=1e-15)


def test_ramp_up_starts_later():
    """1 before epoch 30, a tenth of 300; then the ramp starts with its lowest value."""
    found = [losses.ramp_up(epoch, 300, 0.1) for epoch in (0, 29, 30, 70, 110, 111)]
    assert found == pytest.approx([1, 1, 0.006737946999085467, 0.2865047968601901, 1, 1], rel=1e-15)


@pytest.mark.parametrize(("epoch", "share", "num_epochs"), [(7, 0.07, 100), (14, 0.14, 100), (21, 0.07, 300)])
def test_the_ramp_starts_at_a_whole_epoch(epoch, share, num_epochs):
    """In floating point 0.07 * 100 is 7.000000000000001."""
    assert losses.ramp_up(epoch, num_epochs, share) == pytest.approx(0.006737946999085467)


def test_no_ramp_up():
    assert [losses.ramp_up(epoch, 300, length=0) for epoch in (0, 1, 299)] == [1, 1, 1]


LOSSES = {
    "okddip": lambda z, s: losses.okddip_loss(z, z.flip(1), s, LABELS),
    "one": lambda z, s: losses.one_loss(z, s, LABELS), "kd": lambda z, s: losses.kd_loss(s, z[:, 0], LABELS),
    "cl_ilr": lambda z, s: losses.cl_ilr_loss(z, z.flip(1), LABELS), "dml": lambda z, s: losses.dml_loss(z, LABELS),
    "dml, pairwise": lambda z, s: losses.dml_loss(z, LABELS, pairwise=True),
    "ffl": lambda z, s: losses.ffl_loss(z, s, LABELS), "pcl": lambda z, s: losses.pcl_loss(z, s, z.flip(1), LABELS),
    "kdcl": lambda z, s: losses.kdcl_loss(z, s, LABELS), "okdph": lambda z, s: losses.okdph_loss(z, s, LABELS)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_loss_computes_in_float32(name, half):
    """The loss of half-precision logits is that of the same numbers in float32, to the bit: means included."""
    z, s = logits(B, 3, C).to(half), logits(B, C, seed=1).to(half)
    expected = LOSSES[name](z.float(), s.float())
    for term, found in LOSSES[name](z, s).items():
        assert found.dtype == torch.float32 and found.equal(expected[term])


def test_a_term_that_the_loss_does_not_have():
    terms = losses.individual_loss(logits(B, 3, C), LABELS)
    assert terms.group is terms["group"] and list(terms) == ["total", "true", "group"]
    with pytest.raises(AttributeError, match="no term 'teacher'; it has total, true, group"):
        _ = terms.teacher
