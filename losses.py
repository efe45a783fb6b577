"""The objectives, as pure functions: one per method, each term named.

z: logits; T: temperature; KL(t || z) = batch mean of sum_c p_c (log p_c - log q_c), p = softmax(t/T), q = softmax(z/T).
``loss="CE"`` puts soft cross-entropy, -sum_c p_c log q_c, in KL's place. Gradients flow through the targets t:
whoever wants them fixed detaches them before the call (OKDDip's: detach_targets).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.aggregation import others_mean

DISTILLATION = ("KL", "CE")


class Terms(NamedTuple):
    """An objective and what it is made of, each a scalar tensor: total = true + alpha * weight * group (+ teacher)."""

    total: Tensor
    true: Tensor
    group: Tensor


def ramp_up(epoch: int, num_epochs: int, start_consistency: float = 0.0, length: float = 80) -> float:
    """w(e) = exp(-5 (1 - x/length)^2), x = clip(e - start_consistency * num_epochs, 0, length) (Laine & Aila 2017).

    epoch counts from 0. 1 before the start, and always when length is 0.
    """
    x = round(epoch - start_consistency * num_epochs, 9)  # 0.07 * 100 is a little more than 7
    if length == 0 or x < 0:
        return 1.0
    return math.exp(-5 * (1 - min(x, length) / length) ** 2)


def full_precision(x: Tensor) -> Tensor:
    """float32 in place of half precision (--amp), whose few digits would be lost in a sum of exponentials."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def true_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels, summed over students: logits [B, m, C] or [B, C], labels [B] -> scalar."""
    logits = full_precision(logits)
    if logits.dim() == 2:
        return F.cross_entropy(logits, labels)
    m = logits.shape[1]
    return F.cross_entropy(logits.flatten(0, 1), labels.unsqueeze(1).expand(-1, m).flatten()) * m


def distillation(target: Tensor, logits: Tensor, temperature: float, loss: str = "KL") -> Tensor:
    """T^2 KL(target || logits), or T^2 times the soft cross-entropy; summed over students, averaged over the batch.

    target, logits: [B, C] or [B, m, C] -> scalar. ValueError where ``loss`` is neither KL nor CE.
    """
    log_p = F.log_softmax(full_precision(target) / temperature, dim=-1)
    log_q = F.log_softmax(full_precision(logits) / temperature, dim=-1)
    if loss == "KL":
        per_class = log_p.exp() * (log_p - log_q)
    elif loss == "CE":
        per_class = log_p.exp() * -log_q
    else:
        raise ValueError(f"loss must be one of {', '.join(DISTILLATION)}, not {loss!r}")
    return per_class.sum() * (temperature**2 / logits.shape[0])


def okddip_loss(peers: Tensor, targets: Tensor, leader: Tensor | None, labels: Tensor, weight: float | Tensor = 1.0,
                temperature: float = 3.0, alpha: float = 1.0, loss: str = "KL", teacher: Tensor | None = None,
                detach_targets: bool = False) -> Terms:
    """OKDDip (paper, section 3.3): peers, targets [B, m-1, C], leader [B, C], labels [B]; weight: w(e).

    L_true  = sum_a CE(z_a, y) + CE(z_leader, y)
    L_group = sum_a T^2 KL(t_a || z_a) + T^2 KL(mean_a z_a || z_leader)
    L       = L_true + alpha w(e) L_group

    leader None: without the second level, the terms of the peers alone. teacher [B, C]: a pre-trained network besides
    (Table 6), L + alpha sum over peers and leader of T^2 KL(teacher || z), without ramp-up. detach_targets: t_a and
    mean_a z_a are constants to the gradient, which the paper's are not.
    """
    students, taught_by = peers, targets  # first level: each peer from its own mixture
    if leader is not None:  # second level: the leader from the peers' mean
        students = torch.cat([peers, leader.unsqueeze(1)], 1)  # [B, m, C]
        taught_by = torch.cat([targets, peers.mean(1, keepdim=True)], 1)
    taught_by = taught_by.detach() if detach_targets else taught_by
    L_true = true_loss(students, labels)
    L_group = distillation(taught_by, students, temperature, loss)
    total = L_true + alpha * weight * L_group
    if teacher is not None:
        total = total + alpha * distillation(teacher.unsqueeze(1), students, temperature, loss)
    return Terms(total, L_true, L_group)


def one_loss(branches: Tensor, ensemble: Tensor, labels: Tensor, weight: float | Tensor = 1.0,
             temperature: float = 3.0, alpha: float = 1.0, loss: str = "KL") -> Terms:
    """ONE (Lan et al. 2018): branches [B, m, C], ensemble e [B, C], labels [B]; weight: w(e).

    L = sum_i CE(z_i, y) + CE(e, y) + alpha w(e) sum_i T^2 KL(e || z_i)
    """
    L_true = true_loss(torch.cat([branches, ensemble.unsqueeze(1)], 1), labels)
    L_group = distillation(ensemble.unsqueeze(1), branches, temperature, loss)
    return Terms(L_true + alpha * weight * L_group, L_true, L_group)


def cl_ilr_loss(branches: Tensor, targets: Tensor, labels: Tensor, weight: float | Tensor = 1.0,
                temperature: float = 3.0, alpha: float = 1.0, loss: str = "KL") -> Terms:
    """CL-ILR (Song & Chai 2018): branches, targets [B, m, C], labels [B]; weight: w(e).

    L = sum_i CE(z_i, y) + alpha w(e) sum_i T^2 KL(t_i || z_i), t_i the mean of the other branches
    """
    L_true = true_loss(branches, labels)
    L_group = distillation(targets, branches, temperature, loss)
    return Terms(L_true + alpha * weight * L_group, L_true, L_group)


def individual_loss(branches: Tensor, labels: Tensor) -> Terms:
    """L = sum_i CE(z_i, y): branches [B, m, C] that only share the trunk, or logits [B, C] of one network."""
    L_true = true_loss(branches, labels)
    return Terms(L_true, L_true, torch.zeros_like(L_true))


def dml_loss(branches: Tensor, labels: Tensor, temperature: float = 3.0, loss: str = "KL",
             pairwise: bool = False) -> Terms:
    """Deep mutual learning (Zhang et al. 2018) of m networks: branches [B, m, C], labels [B].

    L = sum_i CE(z_i, y) + sum_i T^2 KL(t_i || z_i), t_i the mean of the other networks' logits;
    pairwise: sum_{i != j} T^2 KL(z_j || z_i) / (m - 1) in its place. No ramp-up.
    """
    m = branches.shape[1]
    L_true = true_loss(branches, labels)
    if pairwise:
        every_pair = distillation(branches.unsqueeze(1), branches.unsqueeze(2), temperature, loss)  # [B, m, m, C]
        itself = distillation(branches, branches, temperature, loss)
        L_group = (every_pair - itself) / (m - 1)
    else:
        L_group = distillation(others_mean(branches), branches, temperature, loss)
    return Terms(L_true + L_group, L_true, L_group)


def kd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 3.0, alpha: float = 1.0,
            loss: str = "KL") -> Terms:
    """Knowledge distillation (Hinton et al. 2015): student, teacher [B, C], labels [B]. No ramp-up.

    L = CE(z, y) + alpha T^2 KL(teacher || z)
    """
    L_true = true_loss(student, labels)
    L_group = distillation(teacher, student, temperature, loss)
    return Terms(L_true + alpha * L_group, L_true, L_group)
