"""KDCL: networks, each with its own view, that learn from one target (Guo et al., CVPR 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .branches import Branches


def of_label(x: Tensor, labels: Tensor) -> Tensor:
    """x_y, x [B, m, C] at the labels [B] -> [B, m, 1]. For labels that are probabilities [B, C]: sum_c y_c x_c."""
    if labels.dim() == 2:
        return (x * labels.unsqueeze(1)).sum(-1, keepdim=True)
    return x.gather(-1, labels.view(-1, 1, 1).expand(-1, x.shape[1], 1))


# The rules that make a target of logits z [B, m, C] and labels [B] or [B, C]: -> t [B, C].


def naive(z: Tensor, labels: Tensor) -> Tensor:
    """The logits of the network with the least cross-entropy, for each image."""
    true = of_label(F.log_softmax(z, -1), labels)  # log p_y [B, m, 1]
    best = true.argmax(1, keepdim=True)  # [B, 1, 1]
    return z.gather(1, best.expand(-1, 1, z.shape[-1])).squeeze(1)


def minlogit(z: Tensor, labels: Tensor) -> Tensor:
    """t_c = min_i (z_ic - z_iy), so t_y = 0. The least logit of each class, relative to that of the label."""
    return (z - of_label(z, labels)).amin(1)


def mean(z: Tensor, labels: Tensor) -> Tensor:
    """mean_i z_i: not a rule of the paper, but what public ports use. It does not need the labels."""
    return z.mean(1)


TARGETS = {"mean": mean, "naive": naive, "minlogit": minlogit}  # and "general", which has weights


def error_products(log_p: Tensor, labels: Tensor) -> Tensor:
    """log_p [B, m, C] -> [m, m], summed over images and classes: (p_i - y)(p_j - y). C_ij is its mean over images."""
    y = labels if labels.dim() == 2 else F.one_hot(labels, log_p.shape[-1])
    e = log_p.exp() - y.unsqueeze(1)  # [B, m, C]
    return (e.unsqueeze(2) * e.unsqueeze(1)).sum((0, 3))  # [B, m, m, C] -> [m, m]; no matrix product: full precision


def general_weights(C: Tensor) -> Tensor:
    """v = C^-1 1 / (1^T C^-1 1), the weights of the least error in C [m, m] -> [m].

    They sum to 1. A billionth of the mean error is added to the diagonal: C has no inverse if a network makes no error,
    or if two are equal. v does not depend on the scale of C, so C is divided by its mean error: C^-1 stays finite.
    """
    C = C.double()
    scaled = C / C.diagonal().mean().clamp(min=torch.finfo(C.dtype).tiny)
    v = torch.linalg.solve(scaled + 1e-9 * torch.eye(len(C), dtype=C.dtype), torch.ones(len(C), dtype=C.dtype))
    return v / v.sum()


class KDCL(Branches):
    """m networks, which may be different ones, and their target. target: a name in ``TARGETS``, or "general".

    v: the weights of the general target, [m]. 1/m until they are set.
    """

    def __init__(self, name: str | Sequence[str], num_classes: int, num_branches: int, target: str = "mean",
                 **options):
        super().__init__(name, num_classes, num_branches, network_based=True, **options)
        self.rule = target
        self.register_buffer("v", torch.full((num_branches,), 1 / num_branches))

    def target(self, z: Tensor, labels: Tensor) -> Tensor:
        """z [B, m, C], labels [B] -> t [B, C]."""
        if self.rule == "general":
            return (self.v.view(-1, 1) * z).sum(1)  # sum_i v_i z_i [B, C]; no matrix product: full precision
        return TARGETS[self.rule](z, labels)

    def set_weights(self, C: list[list[float]]) -> None:
        """Set v, the weights of the general target. C [m][m]: the mean of ``error_products`` over held-out images."""
        self.v.copy_(general_weights(torch.tensor(C, dtype=torch.float64)))
