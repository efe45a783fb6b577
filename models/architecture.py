"""What a family of networks says about itself, and the plain network that is made of it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Architecture(NamedTuple):
    """How to build one network of ``models.NETWORKS``.

    trunk(): the stages that branches share; images [B, 3, H, W] -> x [B, trunk.width, H', W'].
    head(num_classes=C): last stage and classifier; x -> (h [B, head.width], z [B, C]).
    initialise(module): draws the weights of a whole model, attention and gate included, the family's way.
    branch_names: part of the head -> its names in the authors' branch-based checkpoints, {i} being the branch.
    trunk_options, head_options: the keyword options of ``registry.find`` that trunk and head take besides.
    """

    trunk: Callable[[], nn.Module]
    head: Callable[..., nn.Module]
    initialise: Callable[[nn.Module], None]
    branch_names: dict[str, tuple[str, ...]]
    trunk_options: tuple[str, ...] = ()
    head_options: tuple[str, ...] = ()


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm of any input [B, C, ...] that does not count its batches in forward.

    PyTorch's adds 1 to ``num_batches_tracked``, a kernel launch for every layer and step, and reads it only where
    there is no momentum. ``count_batches`` brings all counters up to date at once, before they are saved.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                            self.momentum, self.eps)


def count_batches(module: nn.Module, batches: int) -> None:
    """Add ``batches``, those trained on since the last call, to the counter of every BatchNorm."""
    counters = [m.num_batches_tracked for m in module.modules() if isinstance(m, BatchNorm)]
    if counters:  # none where --sync_bn has put modules in their place that count for themselves
        torch._foreach_add_(counters, batches)


class Network(nn.Module):
    """A plain network: a trunk and a head. Baseline, teacher, and what is left of a group after training."""

    def __init__(self, name: str, trunk: nn.Module, head: nn.Module):
        super().__init__()
        self.name, self.trunk, self.head = name, trunk, head

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> logits [B, C]."""
        _, logits = self.head(self.trunk(images))
        return logits
