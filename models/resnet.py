"""CIFAR ResNets (He et al. 2016). The head starts with the last stage.

    images [B, 3, 32, 32] --Trunk--> [B, width, 16, 16] --Head--> (h [B, D], z [B, C])

A plain network, a branch and a group leader are all made from these two parts. The blocks are those of torchvision, but
compute the shortcut first: this order decides how the gradients of several heads are rounded when they are added.
"""

from functools import partial

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import conv1x1, conv3x3

from .architecture import Architecture
from .architecture import Head as BaseHead


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution and BatchNorm if the shape changes, otherwise None (the identity)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(resnet.BasicBlock):
    """Two 3x3 convolutions and the shortcut: [B, in, H, W] -> [B, channels, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        downsample = shortcut(in_channels, channels, stride)
        super().__init__(in_channels, channels, stride, downsample)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + identity)


class Bottleneck(resnet.Bottleneck):
    """1x1, 3x3, 1x1 convolutions and the shortcut: [B, in, H, W] -> [B, 4 * channels, H/stride, W/stride].

    widen: factor of the channels of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, widen: int = 1):
        downsample = shortcut(in_channels, channels * self.expansion, stride)
        super().__init__(in_channels, channels, stride, downsample, base_width=64 * widen)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + identity)


def stage(block, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """``blocks`` residual blocks. The first one has the stride and changes the number of channels.

    [B, in_channels, H, W] -> [B, channels * expansion(block), H/stride, W/stride].
    """
    out_channels = channels * expansion(block)
    rest = [block(out_channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(in_channels, channels, stride), *rest)


def expansion(block) -> int:
    """Channels of a block's output, divided by ``channels`` of its stage."""
    return getattr(block, "func", block).expansion


class Trunk(nn.Module):
    """First convolution and stages 1 and 2."""

    def __init__(self, block, blocks: int):
        super().__init__()
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(block, 16, 16, blocks, stride=1)
        self.layer2 = stage(block, 16 * expansion(block), 32, blocks, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))  # [B, 16, 32, 32]
        return self.layer2(self.layer1(x))


class Head(BaseHead):
    """Stage 3, average pooling and the classifier."""

    def __init__(self, block, blocks: int, num_classes: int):
        super().__init__()
        self.layer3 = stage(block, 32 * expansion(block), 64, blocks, stride=2)
        self.fc = nn.Linear(64 * expansion(block), num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.layer3(x)

    def classify(self, f: Tensor) -> tuple[Tensor, Tensor]:
        h = f.mean((2, 3))  # [B, D, 8, 8] -> [B, D]
        return h, self.fc(h)


def initialise(module: nn.Module) -> None:
    """Convolutions: Kaiming-normal (fan_out). All else: PyTorch's default."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def architecture(block, blocks: int) -> Architecture:
    """Three stages of ``blocks`` residual blocks each."""
    return Architecture(
        trunk=partial(Trunk, block, blocks),
        head=partial(Head, block, blocks),
        initialise=initialise,
        branch_names={"layer3": ("layer3_{i}",), "fc": ("classifier3_{i}",)},
    )


NETWORKS = {f"resnet{depth}": architecture(BasicBlock, (depth - 2) // 6) for depth in (8, 14, 20, 32, 44, 56)}
NETWORKS["resnet110"] = architecture(Bottleneck, 12)
NETWORKS["wide_resnet20_8"] = architecture(partial(Bottleneck, widen=8), 2)
