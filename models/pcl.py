"""PCL: peers, each with its own view, their ensemble, and a temporal mean of them (Wu & Gong, AAAI 2021)."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .branches import Branches
from .registry import find


class PCL(nn.Module):
    """m peers (branches), the peer ensemble, and the temporal mean model.

    ensemble: a linear classifier of all peers' features. mean: the exponential moving average of trunk and heads. Its
    weights get no gradient. Its BatchNorm statistics are its own, so it runs in the mode (train, eval) of the peers.
    """

    def __init__(self, name: str, num_classes: int, num_branches: int, **options):
        super().__init__()
        self.peers = Branches(name, num_classes, num_branches, **options)
        self.name, self.num_branches = self.peers.name, num_branches
        self.ensemble = nn.Linear(num_branches * self.peers.width, num_classes)
        find(name).initialise(self.ensemble)  # a VGG draws all its linear layers in its own way
        self.mean = Branches(name, num_classes, num_branches, **options).requires_grad_(False)
        self.mean.load_state_dict(self.peers.state_dict())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """views [B, m, 3, H, W] (in evaluation images [B, 3, H, W])
        -> peers [B, m, C], peer ensemble s [B, C], mean peers [B, m, C]."""
        h, z = self.peers.students(self.peers.trunk_outputs(images))
        s = self.ensemble(torch.cat(h, 1))  # m times [B, D] -> [B, m D] -> [B, C]
        with torch.no_grad():
            z_mean = self.mean(images)
        return z, s, z_mean

    def update_mean(self, step: int) -> None:
        """theta' <- d theta' + (1 - d) theta, d = min(1 - 1/(step + 1), 0.999). step: of the training, from 1.

        Until d reaches 0.999, theta' is the plain mean of the initial weights and those after each step.
        """
        d = min(1 - 1 / (step + 1), 0.999)
        get_ema_multi_avg_fn(d)(list(self.mean.parameters()), list(self.peers.parameters()), None)
