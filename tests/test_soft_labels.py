"""Labels as probabilities [B, C]: one-hot ones are class numbers, smoothed ones are PyTorch's label smoothing."""

import pytest
import torch
from torch.nn import functional as F

import losses
from models.kdcl import TARGETS, error_products

B, M, C = 5, 3, 7


def logits():
    torch.manual_seed(0)
    return [torch.randn(B, M, C, dtype=torch.float64) for _ in range(2)]


def every_loss(labels):
    """Each public loss of random logits, by its name."""
    z, t = logits()
    s = t[:, 0]
    return {
        "okddip": losses.okddip_loss(z, t, s, labels, 0.4), "no_leader": losses.okddip_loss(z, t, None, labels, 0.4),
        "teacher": losses.okddip_loss(z, t, s, labels, 0.4, teacher=t[:, 1]),
        "one": losses.one_loss(z, s, labels, 0.4), "cl_ilr": losses.cl_ilr_loss(z, t, labels, 0.4),
        "individual": losses.individual_loss(z, labels), "baseline": losses.individual_loss(s, labels),
        "dml": losses.dml_loss(z, labels), "kd": losses.kd_loss(z[:, 0], s, labels),
        "ffl": losses.ffl_loss(z, s, labels, 0.4), "pcl": losses.pcl_loss(z, s, t, labels, 0.4),
        "kdcl": losses.kdcl_loss(z, s, labels), "okdph": losses.okdph_loss(z, s, labels),
    } | {f"target {rule}": losses.Terms(total=make(z, labels).sum()) for rule, make in TARGETS.items()} | {
        "general": losses.Terms(total=error_products(z.log_softmax(-1), labels).sum())}


@pytest.mark.parametrize("name", every_loss(torch.zeros(B, dtype=torch.int64)))
def test_one_hot_labels_give_the_loss_of_class_numbers(name):
    labels = torch.tensor([0, 6, 3, 3, 1])
    numbers, one_hot = every_loss(labels)[name], every_loss(F.one_hot(labels, C).double())[name]
    for term in numbers:
        torch.testing.assert_close(one_hot[term], numbers[term])


def test_the_true_loss_of_smoothed_labels_is_pytorchs_label_smoothing():
    z, _ = logits()
    labels = torch.tensor([0, 6, 3, 3, 1])
    smooth = 0.9 * F.one_hot(labels, C) + 0.1 / C
    expected = sum(F.cross_entropy(z[:, i], labels, label_smoothing=0.1) for i in range(M))
    torch.testing.assert_close(losses.true_loss(z, smooth.double()), expected)


def test_a_mixture_of_two_labels_has_the_mixture_of_their_losses():
    a, b, share = torch.tensor([0, 6, 3, 3, 1]), torch.tensor([5, 5, 0, 1, 1]), 0.3
    mixed = share * F.one_hot(a, C).double() + (1 - share) * F.one_hot(b, C)
    for name in ("okddip", "one", "cl_ilr", "dml", "kd", "ffl", "pcl", "kdcl", "okdph", "individual"):
        loss_a, loss_b, loss = (every_loss(y)[name] for y in (a, b, mixed))
        torch.testing.assert_close(loss.total, share * loss_a.total + (1 - share) * loss_b.total)
        torch.testing.assert_close(loss.group, loss_a.group)
