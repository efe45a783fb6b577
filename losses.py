"""The losses: one pure function per method, with a name for each term.

Shapes: B images, C classes, m students. Labels are class numbers [B], or probabilities [B, C] (mixup, smoothing).
Symbols: z logits, t targets (logits, too), y labels, T temperature, and

    KL(t || z) = batch mean of sum_c p_c (log p_c - log q_c),   p = softmax(t/T), q = softmax(z/T).

``loss="CE"`` replaces KL by soft cross-entropy, -sum_c p_c log q_c. Gradients flow through the targets t, except where
a formula has sg, stop-gradient: ffl_loss, pcl_loss, kdcl_loss, okdph_loss. To stop other gradients, freeze the teacher
(kd_loss, okddip_loss), detach the targets before the call, or use detach_targets of okddip_loss and dml_loss.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DISTILLATION = ("KL", "CE")


class Terms(dict[str, Tensor]):
    """A loss and its terms by name, each a scalar tensor. ``terms.group`` is ``terms["group"]``.

    total: what is minimised. true: the terms with the labels. group: the terms of the distillation. A loss may have
    more (okddip_loss: teacher). The mean of each over an epoch's images is recorded and drawn as train_loss_<name>
    (total: train_loss), and a term that is not finite is named in the error. Each loss's docstring says how the terms
    add up.
    """

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the loss has no term {name!r}; it has {', '.join(self)}") from error


def ramp_up(epoch: int, num_epochs: int, start_consistency: float = 0.0, length: float = 80) -> float:
    """w(e) = exp(-5 (1 - x/length)^2), x = min(e - start, length) (Laine & Aila 2017, arXiv 1610.02242).

    e: ``epoch``, which counts from 0. start = start_consistency * num_epochs. Before it w(e) = 1, as in the authors'
    code. If length is 0, w(e) is always 1.
    """
    x = round(epoch - start_consistency * num_epochs, 9)  # in floating point, 0.07 * 100 is a little more than 7
    if length == 0 or x < 0:
        return 1.0
    return math.exp(-5 * (1 - min(x, length) / length) ** 2)


def full_precision(x: Tensor) -> Tensor:
    """Half precision (--amp) -> float32, any shape: softmax needs more digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def true_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """sum_i CE(z_i, y), averaged over the batch: logits [B, m, C] or [B, C], labels [B] or [B, C] -> scalar."""
    logits = full_precision(logits)
    if logits.dim() == 2:
        return F.cross_entropy(logits, labels)
    m = logits.shape[1]
    labels = labels.unsqueeze(1).expand(-1, m, *labels.shape[1:]).flatten(0, 1)  # [B] -> [B m]; [B, C] -> [B m, C]
    return F.cross_entropy(logits.flatten(0, 1), labels) * m  # [B, m, C] -> [B m, C]


def distillation(target: Tensor, logits: Tensor, temperature: float, loss: str = "KL") -> Tensor:
    """T^2 KL(target || logits), summed over students (Hinton et al. 2015). loss="CE": T^2 times the soft cross-entropy.

    target, logits: [B, C] or [B, ..., C]; dimensions of size 1 are broadcast -> scalar.
    ValueError if ``loss`` is neither KL nor CE.
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


def from_each_other(targets: Tensor, logits: Tensor, temperature: float, loss: str = "KL") -> Tensor:
    """sum_{i != j} T^2 KL(t_j || z_i): targets t, logits z [B, m, C] -> scalar."""
    all_pairs = distillation(targets.unsqueeze(1), logits.unsqueeze(2), temperature, loss)  # [B, m, m, C]
    return all_pairs - distillation(targets, logits, temperature, loss)  # without the pairs i = j


def okddip_loss(peers: Tensor, targets: Tensor, leader: Tensor | None, labels: Tensor, weight: float | Tensor = 1.0,
                temperature: float = 3.0, alpha: float = 1.0, loss: str = "KL", teacher: Tensor | None = None,
                detach_targets: bool = False) -> Terms:
    """OKDDip (Chen et al. 2020, section 3.3): peers, targets [B, m-1, C], leader [B, C], labels [B]; weight: w(e).

    L_true  = sum_a CE(z_a, y) + CE(z_leader, y)
    L_group = sum_a T^2 KL(t_a || z_a) + T^2 KL(mean_a z_a || z_leader)
    L       = L_true + alpha w(e) L_group   (+ alpha L_teacher)

    leader None: only the terms of the peers. peers and targets are then [B, m, C].
    teacher [B, C]: adds alpha L_teacher, L_teacher = sum_z T^2 KL(teacher || z) over all students, without ramp-up
    (Table 6). It is the term ``teacher``.
    detach_targets: no gradient flows through t_a and mean_a z_a. By default it does, as in the authors' code.
    """
    peers, targets = full_precision(peers), full_precision(targets)
    students, taught_by = peers, targets  # first level: t_a teaches peer a
    if leader is not None:  # second level: the mean of the peers teaches the leader
        students = torch.cat([peers, full_precision(leader).unsqueeze(1)], 1)  # [B, m, C]
        taught_by = torch.cat([targets, peers.mean(1, keepdim=True)], 1)  # [B, m, C]
    taught_by = taught_by.detach() if detach_targets else taught_by
    L_true = true_loss(students, labels)
    L_group = distillation(taught_by, students, temperature, loss)
    terms = Terms(total=L_true + alpha * weight * L_group, true=L_true, group=L_group)
    if teacher is not None:
        terms["teacher"] = distillation(teacher.unsqueeze(1), students, temperature, loss)
        terms["total"] = terms.total + alpha * terms.teacher
    return terms


def one_loss(branches: Tensor, ensemble: Tensor, labels: Tensor, weight: float | Tensor = 1.0,
             temperature: float = 3.0, alpha: float = 1.0, loss: str = "KL") -> Terms:
    """ONE (Lan et al. 2018): branches [B, m, C], ensemble e [B, C], labels [B]; weight: w(e).

    L = sum_i CE(z_i, y) + CE(e, y) + alpha w(e) sum_i T^2 KL(e || z_i)
    """
    L_true = true_loss(torch.cat([branches, ensemble.unsqueeze(1)], 1), labels)
    L_group = distillation(ensemble.unsqueeze(1), branches, temperature, loss)
    return Terms(total=L_true + alpha * weight * L_group, true=L_true, group=L_group)


def cl_ilr_loss(branches: Tensor, targets: Tensor, labels: Tensor, weight: float | Tensor = 1.0,
                temperature: float = 3.0, alpha: float = 1.0, loss: str = "KL") -> Terms:
    """CL-ILR (Song & Chai 2018): branches, targets [B, m, C], labels [B]; weight: w(e).

    L = sum_i CE(z_i, y) + alpha w(e) sum_i T^2 KL(t_i || z_i),   t_i = mean of z_j over j != i
    """
    L_true = true_loss(branches, labels)
    L_group = distillation(targets, branches, temperature, loss)
    return Terms(total=L_true + alpha * weight * L_group, true=L_true, group=L_group)


def individual_loss(branches: Tensor, labels: Tensor) -> Terms:
    """L = sum_i CE(z_i, y): branches [B, m, C] or the logits [B, C] of one network, labels [B]. No distillation."""
    L_true = true_loss(branches, labels)
    return Terms(total=L_true, true=L_true, group=torch.zeros_like(L_true))


def dml_loss(branches: Tensor, labels: Tensor, temperature: float = 3.0, loss: str = "KL",
             pairwise: bool = False, detach_targets: bool = False) -> Terms:
    """Deep mutual learning (Zhang et al. 2018): branches [B, m, C], the logits of m networks; labels [B]. No ramp-up.

    L = sum_i CE(z_i, y) + sum_i T^2 KL(t_i || z_i),   t_i = mean of z_j over j != i

    pairwise: the second sum is sum_{i != j} T^2 KL(z_j || z_i) / (m - 1).
    detach_targets: no gradient flows through t_i and z_j, as in Zhang et al. By default it does, as in the code of
    OKDDip's authors.
    """
    m, branches = branches.shape[1], full_precision(branches)
    taught_by = branches.detach() if detach_targets else branches
    L_true = true_loss(branches, labels)
    if pairwise:
        L_group = from_each_other(taught_by, branches, temperature, loss) / (m - 1)
    else:
        t = (taught_by.sum(1, keepdim=True) - taught_by) / (m - 1)  # [B, m, C]
        L_group = distillation(t, branches, temperature, loss)
    return Terms(total=L_true + L_group, true=L_true, group=L_group)


def kd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 3.0, alpha: float = 1.0,
            loss: str = "KL") -> Terms:
    """Knowledge distillation (Hinton et al. 2015): student, teacher [B, C], labels [B]. No ramp-up.

    L = CE(z, y) + alpha T^2 KL(teacher || z)
    """
    L_true = true_loss(student, labels)
    L_group = distillation(teacher, student, temperature, loss)
    return Terms(total=L_true + alpha * L_group, true=L_true, group=L_group)


def ffl_loss(branches: Tensor, fused: Tensor, labels: Tensor, weight: float | Tensor = 1.0, temperature: float = 3.0,
             alpha: float = 1.0, loss: str = "KL") -> Terms:
    """FFL (Kim et al. 2020): branches z [B, m, C], fused logits s [B, C], labels [B]; weight: w(e). sg: no gradient.

    L = sum_i CE(z_i, y) + CE(s, y) + alpha w(e) [T^2 KL(sg mean_i z_i || s) + sum_i T^2 KL(sg s || z_i)]
    """
    branches, fused = full_precision(branches), full_precision(fused)
    L_true = true_loss(torch.cat([branches, fused.unsqueeze(1)], 1), labels)
    L_fused = distillation(branches.mean(1).detach(), fused, temperature, loss)  # the branches' ensemble teaches s
    L_branches = distillation(fused.detach().unsqueeze(1), branches, temperature, loss)  # s teaches each branch
    L_group = L_fused + L_branches
    return Terms(total=L_true + alpha * weight * L_group, true=L_true, group=L_group)


def pcl_loss(peers: Tensor, ensemble: Tensor, mean_peers: Tensor, labels: Tensor, weight: float | Tensor = 1.0,
             temperature: float = 3.0, alpha: float = 1.0, loss: str = "KL") -> Terms:
    """PCL (Wu & Gong 2021): peers z, mean peers z' [B, m, C], peer ensemble s [B, C], labels [B]; weight: w(e).

    L = CE(s, y) + sum_i [CE(z_i, y) + alpha w(e) T^2 KL(sg s || z_i)
                          + alpha w(e) / (m - 1) sum_{j != i} T^2 KL(sg z'_j || z_i)],   sg: no gradient
    """
    m = peers.shape[1]
    L_true = true_loss(torch.cat([peers, ensemble.unsqueeze(1)], 1), labels)
    L_ensemble = distillation(ensemble.detach().unsqueeze(1), peers, temperature, loss)
    L_mean = from_each_other(mean_peers.detach(), peers, temperature, loss) / (m - 1)
    L_group = L_ensemble + L_mean
    return Terms(total=L_true + alpha * weight * L_group, true=L_true, group=L_group)


def kdcl_loss(networks: Tensor, target: Tensor, labels: Tensor, temperature: float = 2.0, loss: str = "KL") -> Terms:
    """KDCL (Guo et al. 2020): networks z [B, m, C], target t [B, C], labels [B].

    L = sum_i [CE(z_i, y) + T^2 KL(sg t || z_i)],   sg: no gradient

    The weight 1 of the second term and the absence of a ramp-up are our interpretation of the paper.
    """
    L_true = true_loss(networks, labels)
    L_group = distillation(target.detach().unsqueeze(1), networks, temperature, loss)
    return Terms(total=L_true + L_group, true=L_true, group=L_group)


def okdph_loss(networks: Tensor, hybrid: Tensor, labels: Tensor, temperature: float = 4.0, omega: float = 0.8,
               beta: float = 0.8, loss: str = "KL") -> Terms:
    """OKDPH (Zhang et al. 2023): networks z [B, m, C], hybrid's logits [B, C], labels [B]. Network i minimises its own

    L_i = omega CE(z_i, y) + (1 - omega) CE(z_hybrid, y) + beta T^2 KL(t || z_i),   t = sg of the mean of all m + 1
                                                                                    logits; sg: no gradient
    total = sum_i [omega CE(z_i, y) + beta T^2 KL(t || z_i)] + (1 - omega) CE(z_hybrid, y)

    total has CE(z_hybrid, y) once: its gradient is then, for each network, that of the network's own L_i. In the sum of
    all L_i it would count m times. If z_hybrid has no gradient (models.OKDPH), this term changes no weight.
    """
    networks, hybrid = full_precision(networks), full_precision(hybrid)
    t = torch.cat([networks, hybrid.unsqueeze(1)], 1).mean(1, keepdim=True).detach()  # [B, 1, C]
    L_true = omega * true_loss(networks, labels) + (1 - omega) * true_loss(hybrid, labels)
    L_group = distillation(t, networks, temperature, loss)
    return Terms(total=L_true + beta * L_group, true=L_true, group=L_group)
