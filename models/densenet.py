"""CIFAR DenseNet-BC (Huang et al. 2017). The head starts with the last dense block.

    images [B, 3, 32, 32] --Trunk--> [B, width, 8, 8] --Head--> (h [B, D], z [B, C])

``efficient``: less memory, more time (Pleiss et al. 2017, arXiv 1707.06990). Every layer concatenates all features
before it. What backward needs of them grows with the square of the depth. With ``efficient`` it is not kept but
computed again in backward.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .architecture import Architecture
from .architecture import Head as BaseHead

GROWTH = 12  # k, the channels that each layer adds
BOTTLENECK = 4 * GROWTH  # channels between a layer's two convolutions
STEM = 24  # channels in front of the first block


@contextmanager
def untouched_statistics(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Give norm copies of its buffers for a second pass over the same batch: each batch counts once."""
    buffers = dict(norm.named_buffers())
    for name, value in buffers.items():
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for name, value in buffers.items():
            setattr(norm, name, value)


class DenseLayer(nn.Module):
    """norm1-relu-conv1 (1x1), norm2-relu-conv2 (3x3): all features so far -> GROWTH new channels."""

    def __init__(self, in_channels: int, efficient: bool):
        super().__init__()
        self.efficient = efficient
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, BOTTLENECK, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK)
        self.conv2 = nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def bottleneck(self, *features: Tensor) -> Tensor:
        """features: [B, c_j, H, W] each, together in_channels channels -> [B, BOTTLENECK, H, W]."""
        return self.conv1(self.relu(self.norm1(torch.cat(features, 1))))

    def forward(self, features: list[Tensor]) -> Tensor:
        """[B, c_j, H, W] each -> [B, GROWTH, H, W]."""
        if self.efficient and self.training:
            x = checkpoint(
                self.bottleneck, *features, use_reentrant=False,
                preserve_rng_state=False,  # nothing here is random
                context_fn=lambda: (nullcontext(), untouched_statistics(self.norm1)),  # forward, recomputation
            )
        else:
            x = self.bottleneck(*features)
        return self.conv2(self.relu(self.norm2(x)))


class DenseBlock(nn.Sequential):
    """Each layer takes the block's input and the outputs of all layers before it.

    [B, c, H, W] -> [B, c + layers * GROWTH, H, W].
    """

    def __init__(self, in_channels: int, layers: int, efficient: bool):
        super().__init__(OrderedDict(
            (f"denselayer{j + 1}", DenseLayer(in_channels + j * GROWTH, efficient)) for j in range(layers)
        ))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """[B, in_channels, H, W] -> [B, out_channels, H/2, W/2]."""
    return nn.Sequential(OrderedDict(
        norm=nn.BatchNorm2d(in_channels),
        relu=nn.ReLU(inplace=True),
        conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
        pool=nn.AvgPool2d(2),
    ))


def channels(layers: int) -> tuple[int, int, int]:
    """After each block. A block adds layers * GROWTH channels, the transitions before the others halve them."""
    one = STEM + layers * GROWTH
    two = one // 2 + layers * GROWTH
    return one, two, two // 2 + layers * GROWTH


class Trunk(nn.Module):
    """First convolution, blocks 1 and 2 with their transitions."""

    def __init__(self, layers: int, efficient: bool = False):
        super().__init__()
        one, two, _ = channels(layers)
        self.features = nn.Sequential(OrderedDict(
            conv0=nn.Conv2d(3, STEM, 3, padding=1, bias=False),
            denseblock1=DenseBlock(STEM, layers, efficient),
            transition1=transition(one, one // 2),
            denseblock2=DenseBlock(one // 2, layers, efficient),
            transition2=transition(two, two // 2),
        ))

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


class Head(BaseHead):
    """Block 3, the final BatchNorm, average pooling and the classifier."""

    def __init__(self, layers: int, num_classes: int, efficient: bool = False):
        super().__init__()
        _, two, three = channels(layers)
        self.features = nn.Sequential(OrderedDict(
            denseblock3=DenseBlock(two // 2, layers, efficient),
            norm_final=nn.BatchNorm2d(three),
            relu=nn.ReLU(inplace=True),
        ))
        self.classifier = nn.Linear(three, num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.features(x)

    def classify(self, f: Tensor) -> tuple[Tensor, Tensor]:
        h = f.mean((2, 3))  # [B, D, 8, 8] -> [B, D]
        return h, self.classifier(h)


def initialise(module: nn.Module) -> None:
    """Convolutions: Kaiming-normal (fan_in). Biases of the classifiers: 0. All else: PyTorch's default."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(m, Head):  # only the classifier: the gate's bias keeps PyTorch's default
            nn.init.zeros_(m.classifier.bias)


def architecture(layers: int) -> Architecture:
    """``layers`` in each of three dense blocks."""
    return Architecture(
        trunk=partial(Trunk, layers),
        head=partial(Head, layers),
        initialise=initialise,
        branch_names={
            "features.denseblock3": ("Branch{i}", "layer3_{i}"),  # OKDDip; ONE, CL-ILR and Ind
            "features.norm_final": ("norm_final_{i}",),
            "classifier": ("classifier3_{i}",),
        },
        trunk_options=("efficient",),
        head_options=("efficient",),
    )


# Depth = 3 * 2 * layers + 4: three blocks, two convolutions in a layer; first convolution, two transitions, classifier.
NETWORKS = {f"densenetd{depth}k{GROWTH}": architecture((depth - 4) // 6) for depth in (40, 100)}
