"""OKDPH: networks that learn with the hybrid of their weights (Zhang et al., CVPR 2023)."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .branches import Branches
from .registry import create_model

Mixed = list[Tensor]  # sum_i r_i theta_i, tensor by tensor


class OKDPH(Branches):
    """m networks with the same initial weights, and the hybrid network: weights and buffers sum_i r_i theta_i.

    r: the mixing weights of a step [m], which the method sets before it. In training, each forward pass sets the hybrid
    to this mixture. In evaluation the hybrid is the deployed one: r_i = 1/m, of the current weights.
    hybrid_gradient: the gradient of the hybrid's loss reaches the networks: network i gets r_i times that of the
    hybrid's weights. By default, as in the authors' code, weights are copied and no gradient flows.
    """

    def __init__(self, name: str, num_classes: int, num_branches: int, hybrid_gradient: bool = False, **options):
        super().__init__(name, num_classes, num_branches, network_based=True, **options)
        self.hybrid = create_model(name, num_classes, **options).requires_grad_(False)
        for network in (*map(self.student, range(1, num_branches)), self.hybrid):
            network.load_state_dict(self.student(0).state_dict())
        self.hybrid_gradient = hybrid_gradient
        self.register_buffer("r", torch.full((num_branches,), 1 / num_branches))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """views [B, m + 1, 3, H, W], the last one for the hybrid (in evaluation images [B, 3, H, W])
        -> networks [B, m, C], hybrid [B, C]."""
        own, last = (images[:, :-1], images[:, -1]) if images.dim() == 5 else (images, images)
        if not self.training:
            return super().forward(own), functional_call(self.hybrid, self.deployed(), (last,))
        weights = self.take(self.r)  # before the networks run, because that changes their BatchNorm statistics
        z = super().forward(own)
        if not self.hybrid_gradient:
            return z, self.hybrid(last)
        # --efficient: the recomputation in backward reads the hybrid's own weights. They are equal to these.
        names = [name for name, _ in self.hybrid.named_parameters()]
        return z, functional_call(self.hybrid, dict(zip(names, weights, strict=True)), (last,))

    def mixed(self, r: Tensor) -> tuple[Mixed, Mixed]:
        """-> weights and BatchNorm statistics sum_i r_i theta_i, r [m]. Gradients flow through the weights."""
        networks = list(zip(self.trunks, self.heads, strict=True))
        weights = mix([parameters(*parts) for parts in networks], r)
        return weights, mix([statistics(*parts) for parts in networks], r)

    def take(self, r: Tensor) -> Mixed:
        """Set the hybrid to sum_i r_i theta_i, r [m]. -> its weights, through which gradients flow to all networks."""
        weights, buffers = self.mixed(r)
        with torch.no_grad():
            torch._foreach_copy_(parameters(self.hybrid) + statistics(self.hybrid), weights + buffers)
        return weights

    def deployed(self) -> dict[str, Tensor]:
        """The hybrid with r_i = 1/m: its weights and statistics by name. The hybrid of the last step stays."""
        weights, buffers = self.mixed(torch.full_like(self.r, 1 / self.num_branches))
        names = [name for name, _ in self.hybrid.named_parameters()]
        buffer_names = [name for name, buffer in self.hybrid.named_buffers() if buffer.is_floating_point()]
        return dict(zip(names + buffer_names, weights + buffers, strict=True))

    @torch.no_grad()
    def share(self, gamma: float) -> None:
        """Fusion: theta_i <- gamma theta_hybrid + (1 - gamma) theta_i, weights and buffers.

        The hybrid is that of the last step: taken before the step, with the BatchNorm statistics after it.
        """
        for parts in zip(self.trunks, self.heads, strict=True):
            torch._foreach_lerp_(parameters(*parts) + statistics(*parts),
                                 parameters(self.hybrid) + statistics(self.hybrid), gamma)

    @torch.no_grad()
    def deploy(self) -> None:
        """Set the hybrid to the one that is deployed: r_i = 1/m. For a model that is not trained any further."""
        self.take(torch.full_like(self.r, 1 / self.num_branches))


class _Mix(torch.autograd.Function):
    """A few kernels for all tensors together, in backward, too."""

    @staticmethod
    def forward(ctx, r: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(r)
        n = len(tensors) // len(r)
        total, *others = (torch._foreach_mul(tensors[i * n:(i + 1) * n], r_i) for i, r_i in enumerate(r.unbind()))
        for more in others:
            torch._foreach_add_(total, more)
        return tuple(total)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (r,) = ctx.saved_tensors
        return None, *(part for r_i in r.unbind() for part in torch._foreach_mul(gradients, r_i))


def mix(tensors: list[list[Tensor]], r: Tensor) -> Mixed:
    """tensors[i]: those of network i, r [m] -> sum_i r_i tensors[i]. The gradient of tensors[i] is r_i times that."""
    return list(_Mix.apply(r, *(t for own in tensors for t in own))) if tensors[0] else []  # no BatchNorm


def parameters(*parts: nn.Module) -> list[Tensor]:
    """The weights of a network, or of its trunk and head."""
    return [p for part in parts for p in part.parameters()]


def statistics(*parts: nn.Module) -> list[Tensor]:
    """Their running means and variances in BatchNorm, without the counters of batches."""
    return [buffer for part in parts for buffer in part.buffers() if buffer.is_floating_point()]
