"""Groups of m students: m heads on one trunk (branch-based), or m whole networks (network-based).

Every group tensor is [B, m, .]. OKDDip's group leader is the last of the m students. A group takes images [B, 3, H, W],
the same for all students. All but ONE and FFL also take views [B, m, 3, H, W]: view i for student i; OKDPH takes m + 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .aggregation import AGGREGATIONS, Gate, divide_gradient, others_mean
from .architecture import Network
from .registry import find_each
from .sources import title


class Branches(nn.Module):
    """m students without interaction: the "individual" baseline (one shared trunk), or the networks of DML.

    name: the network of all students, or a list with the network of each; different ones only if network_based. A
    network is a name, or a function or class that makes it when called with ``num_classes=C``.
    network_based: m trunks instead of one. options: see ``registry.find``. ValueError if m < 2, or if names and m or
    network_based do not fit.
    """

    takes_views = True  # False: what combines the students needs the same image for all

    def __init__(self, name: str | Callable | Sequence[str | Callable], num_classes: int, num_branches: int,
                 network_based: bool = False, **options):
        super().__init__()
        if num_branches < 2:
            raise ValueError(f"a group needs at least 2 branches, not {num_branches}")
        networks = [name] * num_branches if isinstance(name, str) or callable(name) else list(name)
        if len(networks) != num_branches:
            raise ValueError(f"{num_branches} students need as many networks, not {len(networks)}")
        self.names = [title(network) for network in networks]
        mixed = len(set(networks)) > 1
        if mixed and not network_based:
            raise ValueError("branches share the trunk of one network: different networks must be network-based")
        self.name = "+".join(self.names) if mixed else self.names[0]
        self.num_branches, self.network_based = num_branches, network_based
        architectures = find_each(networks, shared_trunk=not network_based, **options)
        self.trunks = nn.ModuleList(a.trunk() for a in (architectures if network_based else architectures[:1]))
        self.heads = nn.ModuleList(a.head(num_classes=num_classes) for a in architectures)
        self.trunk_width, self.width = self.measure_widths(architectures[0].image_size)
        self.add_aggregation()
        if mixed:
            for architecture, *parts in zip(architectures, self.trunks, self.heads, strict=True):
                architecture.initialise(nn.ModuleList(parts))
        else:
            architectures[0].initialise(self)

    def measure_widths(self, size: int) -> tuple[int | None, int]:
        """-> the channels of the trunk's output (None if it is not a feature map), and D, the size of h.

        Attention, gate and fusion need them. Two images pass the first student in evaluation mode, so no statistic
        and no random number changes. Images are square, so a map [B, S, S, D] has its channels last.
        """
        student = self.student(0).eval()
        with torch.no_grad():
            x = student.trunk(torch.zeros(2, 3, size, size))
            h, _ = student.head(x)
        student.train()
        is_map = x.dim() == 4 and not x.shape[1] == x.shape[2] != x.shape[3]
        return x.shape[1] if is_map else None, h.shape[1]

    def add_aggregation(self) -> None:
        """Subclasses create the modules that combine the students here. ``Branches`` has none."""

    def trunk_outputs(self, images: Tensor) -> list[Tensor]:
        """images [B, 3, H, W] or views [B, m, 3, H, W] -> x [B, trunk_width, H', W'] for each head, or one for all."""
        if images.dim() == 4:
            return [trunk(images) for trunk in self.trunks]
        if not self.takes_views:
            raise ValueError(f"{type(self).__name__} takes images [B, 3, H, W], the same for all students, not views")
        if images.shape[1] != self.num_branches:
            raise ValueError(f"{self.num_branches} students need as many views of an image, not {images.shape[1]}")
        trunks = self.trunks if self.network_based else [self.trunks[0]] * self.num_branches
        # One view after the other: BatchNorm normalises each by its own statistics, also in a shared trunk.
        return [trunk(view) for trunk, view in zip(trunks, images.unbind(1), strict=True)]

    def students(self, x: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """x: what ``trunk_outputs`` returns -> features h, m times [B, D_i], and logits z [B, m, C]."""
        inputs = x if len(x) == self.num_branches else x * self.num_branches
        h, z = zip(*(head(x) for head, x in zip(self.heads, inputs, strict=True)), strict=True)
        return list(h), torch.stack(z, 1)  # m times [B, C] -> [B, m, C]

    def forward(self, images: Tensor):
        """images [B, 3, H, W] or views [B, m, 3, H, W] -> logits [B, m, C]."""
        _, z = self.students(self.trunk_outputs(images))
        return z

    def student(self, i: int) -> Network:
        """Student i as a plain network. It shares its weights with the group. -1: the last one, OKDDip's leader."""
        return Network(self.names[i], self.trunks[i if self.network_based else 0], self.heads[i])


class OKDDip(Branches):
    """m - 1 auxiliary peers, each with its own target, and the group leader (Chen et al. 2020).

    aggregation: how the peers are weighted, a name in ``AGGREGATIONS``. leader=False: all m students are peers.
    ValueError if the name is unknown, or if "others" has fewer than two peers.
    """

    def __init__(self, name: str, num_classes: int, num_branches: int = 4, network_based: bool = False,
                 aggregation: str = "attention", leader: bool = True, **options):
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"unknown aggregation {aggregation!r}; known are {', '.join(AGGREGATIONS)}")
        if aggregation == "others" and num_branches - leader < 2:
            raise ValueError(f"aggregation 'others' needs at least 2 peers, not {num_branches - leader}")
        self.aggregation_name, self.has_leader = aggregation, leader
        super().__init__(name, num_classes, num_branches, network_based, **options)

    def add_aggregation(self) -> None:
        self.aggregation = AGGREGATIONS[self.aggregation_name](self.width)

    def attend(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """images [B, 3, H, W] -> peers' logits [B, m-1, C], attention [B, m-1, m-1], leader's logits [B, C].

        Without a leader: [B, m, C], [B, m, m], None.
        """
        h, z = self.students(self.trunk_outputs(images))
        h = torch.stack(h, 1)  # m times [B, D] -> [B, m, D]
        if not self.has_leader:
            return z, self.aggregation(h, z), None
        peers, leader = z[:, :-1], z[:, -1]
        return peers, self.aggregation(h[:, :-1], peers), leader

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """images [B, 3, H, W] -> peers [B, m-1, C], their targets [B, m-1, C], leader [B, C] (None without one).

        t_a = sum_b alpha_ab z_b (paper, section 3.2), on logits as in the paper's Figure 1 and the authors' code. The
        paper's equation has probabilities. The gradient flows through t_a: it is not detached.
        """
        peers, attention, leader = self.attend(images)
        targets = attention @ peers  # [B, m-1, m-1] @ [B, m-1, C] -> [B, m-1, C]
        return peers, targets, leader


class ONE(Branches):
    """m branches and their gated ensemble, the teacher of each branch (Lan et al. 2018). Branch-based only."""

    takes_views = False

    def add_aggregation(self) -> None:
        if self.trunk_width is None:
            raise ValueError(f"ONE's gate pools a feature map [B, C, H, W], which {self.name} does not have at the cut")
        self.gate = Gate(self.trunk_width, self.num_branches)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] -> branches [B, m, C], ensemble e = sum_i g_i z_i [B, C]."""
        x = self.trunk_outputs(images)
        _, z = self.students(x)
        g = self.gate(x[0])  # [B, m]
        return z, (g.unsqueeze(1) @ z).squeeze(1)  # [B, 1, m] @ [B, m, C] -> [B, C]


class CLILR(Branches):
    """Collaborative learning (Song & Chai 2018): each branch learns from the mean of the others.

    rescale: divide the gradient that enters the shared trunk by m (intermediate-level representation, ILR).
    ValueError if rescale is used with network-based students: they have no shared trunk.
    """

    def __init__(self, name: str, num_classes: int, num_branches: int, rescale: bool = True,
                 network_based: bool = False, **options):
        if rescale and network_based:
            raise ValueError("gradient rescaling needs a shared trunk: rescale=False for network-based students")
        super().__init__(name, num_classes, num_branches, network_based, **options)
        self.rescale = rescale

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] -> branches [B, m, C], targets t_i = mean of z_j over j != i [B, m, C]."""
        x = self.trunk_outputs(images)
        if self.rescale:
            x = [divide_gradient(of_trunk, self.num_branches) for of_trunk in x]
        _, z = self.students(x)
        return z, others_mean(z)
