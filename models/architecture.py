"""How a family of networks is described, and the plain network: a trunk and a head."""

import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn


class Architecture(NamedTuple):
    """How to build one network of ``models.NETWORKS``.

    trunk(): makes the stages that branches share. images [B, 3, H, W] -> x [B, width, H', W'].
    head(num_classes=C): makes a ``Head``. x -> features h [B, D], logits z [B, C].
    initialise(module): draws the initial weights of a whole model, also of its attention or gate.
    branch_names: part of the head -> its names in the authors' branch-based checkpoints; {i} is the branch.
    trunk_options, head_options: the options of ``registry.find`` that trunk and head take.
    image_size: height and width of the images that the network is made for.
    """

    trunk: Callable[[], nn.Module]
    head: Callable[..., "Head"]
    initialise: Callable[[nn.Module], None]
    branch_names: dict[str, tuple[str, ...]]
    trunk_options: tuple[str, ...] = ()
    head_options: tuple[str, ...] = ()
    image_size: int = 32

    def has(self, option: str) -> bool:
        """Whether the trunk or the head takes the option."""
        return option in self.trunk_options + self.head_options

    def with_options(self, options: dict) -> "Architecture":
        """The same, with those of the options set that trunk and head take."""
        trunk, head = ({name: options[name] for name in names if name in options}
                       for names in (self.trunk_options, self.head_options))
        return self._replace(trunk=partial(self.trunk, **trunk), head=partial(self.head, **head))


def synchronise(model: nn.Module) -> nn.Module:
    """The model with BatchNorm over the images of all processes (torch.nn.SyncBatchNorm).

    ValueError if a layer computes more than BatchNorm, which would be lost. timm converts its own, with an activation.
    """
    timm = sys.modules.get("timm.layers")
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm, *((timm.BatchNormAct2d,) if timm else ()))
    for module in model.modules():
        if (isinstance(module, nn.modules.batchnorm._BatchNorm)
                and type(module).forward not in [kind.forward for kind in kinds]):
            raise ValueError(f"--sync_bn: {type(module).__name__} is not PyTorch's BatchNorm, and may compute more: "
                             "leave out --sync_bn")
    return (timm or nn.SyncBatchNorm).convert_sync_batchnorm(model)


def with_versions(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights with the versions of the layers of ``network``: torchvision's MNASNet loads no others."""
    weights = OrderedDict(weights)
    weights._metadata = network.state_dict()._metadata
    return weights


class Head(nn.Module):
    """The last stage and the classifier of a network. Subclasses define the two halves; FFL fuses the maps between."""

    def feature_map(self, x: Tensor) -> Tensor:
        """The trunk's output x [B, width, H', W'] -> the last feature map f [B, D, H, W], D the size of h."""
        raise NotImplementedError

    def classify(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """f [B, D, H, W] -> features h [B, D], logits z [B, C]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, width, H', W'] -> features h [B, D], logits z [B, C]."""
        return self.classify(self.feature_map(x))


class Network(nn.Module):
    """A plain network: a trunk and a head. It is the baseline, the teacher, or one student of a group."""

    def __init__(self, name: str, trunk: nn.Module, head: nn.Module):
        super().__init__()
        self.name, self.trunk, self.head = name, trunk, head

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> logits [B, C]."""
        _, logits = self.head(self.trunk(images))
        return logits

    def own_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names that they have in the network from elsewhere; else as in ``state_dict``."""
        return {re.sub(r"^(trunk|head)\.network\.", "", name): value for name, value in self.state_dict().items()}
