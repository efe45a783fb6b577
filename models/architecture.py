"""What a family of networks says about itself, and the plain network that is made of it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


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


class Network(nn.Module):
    """A plain network: a trunk and a head. Baseline, teacher, and what is left of a group after training."""

    def __init__(self, name: str, trunk: nn.Module, head: nn.Module):
        super().__init__()
        self.name, self.trunk, self.head = name, trunk, head

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> logits [B, C]."""
        _, logits = self.head(self.trunk(images))
        return logits
