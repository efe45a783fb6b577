"""FFL: branches whose last feature maps are fused into one more classifier (Kim et al., ICPR 2020)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .architecture import Head
from .branches import Branches
from .registry import find


class Fusion(nn.Module):
    """The fused classifier: feature maps of m students, each [B, width, H, W] -> fused logits s [B, C].

    Convolutions are drawn from N(0, 2 / (k k out_channels)), k the size of the kernel.
    """

    def __init__(self, num_branches: int, width: int, num_classes: int):
        super().__init__()
        channels = num_branches * width
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        for conv in (self.depthwise, self.pointwise):
            k = conv.kernel_size[0]
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (k * k * conv.out_channels)))

    def forward(self, f: Sequence[Tensor]) -> Tensor:
        x = torch.cat(f, 1)  # m times [B, D, H, W] -> [B, m D, H, W]
        x = F.relu(self.norm1(self.depthwise(x)))
        x = F.relu(self.norm2(self.pointwise(x)))  # [B, D, H, W]
        return self.fc(x.mean((2, 3)))


class FFL(Branches):
    """m students and the fused classifier. The fused classifier and the students' ensemble teach each other."""

    takes_views = False

    def __init__(self, name: str, num_classes: int, num_branches: int, network_based: bool = False, **options):
        super().__init__(name, num_classes, num_branches, network_based, **options)
        if type(self.heads[0]).feature_map is Head.feature_map:
            raise ValueError(f"FFL fuses the last feature maps of the branches, which {self.name} does not give")
        self.fusion = Fusion(num_branches, self.width, num_classes)
        find(name).initialise(self.fusion.fc)  # a VGG draws all its linear layers in its own way

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] -> logits of the students [B, m, C], fused logits s [B, C]."""
        x = self.trunk_outputs(images)
        x = x if self.network_based else x * self.num_branches
        f = [head.feature_map(x_i) for head, x_i in zip(self.heads, x, strict=True)]  # m times [B, D, H, W]
        z = [head.classify(f_i)[1] for head, f_i in zip(self.heads, f, strict=True)]
        return torch.stack(z, 1), self.fusion(f)  # m times [B, C] -> [B, m, C]
