"""VGG with BatchNorm for 32x32 images (Simonyan & Zisserman 2015). The head starts with the last stage.

    images [B, 3, 32, 32] --Trunk--> [B, 512, 2, 2] --Head--> (h [B, 512], z [B, C])

Names as in the authors' code: two convolutions, then the stages layer1 to layer4. The classifier has three linear
layers with 512 hidden units; ImageNet's VGG has 4096.
"""

from functools import partial

from torch import Tensor, nn

from .architecture import Architecture
from .architecture import Head as BaseHead

WIDTH = 512  # channels of the last two stages, units of the classifier


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """[B, in, H, W] -> [B, out, H, W], with a bias."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def stage(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    """conv, bn, relu, conv, bn, relu, ..., pool: [B, in_channels, H, W] -> [B, channels, H/2, W/2]."""
    layers = []
    for i in range(convolutions):
        conv = conv3x3(channels if i else in_channels, channels)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class Trunk(nn.Module):
    """First two convolutions and stages 1 to 3. convolutions: see ``architecture``."""

    def __init__(self, convolutions: int):
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = conv3x3(64, 64)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.layer1 = stage(64, 128, 2)
        self.layer2 = stage(128, 256, convolutions)
        self.layer3 = stage(256, WIDTH, convolutions)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))  # [B, 64, 16, 16]
        return self.layer3(self.layer2(self.layer1(x)))


class Head(BaseHead):
    """Stage 4 and the classifier. dropout: probability after each hidden layer."""

    def __init__(self, convolutions: int, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.layer4 = stage(WIDTH, WIDTH, convolutions)
        self.classifier = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(WIDTH, num_classes),
        )

    def feature_map(self, x: Tensor) -> Tensor:
        for layer in list(self.layer4)[:-1]:  # all but the pooling
            x = layer(x)
        return x

    def classify(self, f: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layer4[-1](f).flatten(1)  # [B, D, 2, 2] -> [B, D], the input of the classifier
        return h, self.classifier(h)


def initialise(module: nn.Module) -> None:
    """Convolutions: Kaiming-normal (fan_out). Linear layers, also attention and gate: N(0, 0.01^2). Biases: 0."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.01)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def architecture(convolutions: int) -> Architecture:
    """``convolutions``: their number in each stage from layer2 on (3 in vgg16, 4 in vgg19)."""
    return Architecture(
        trunk=partial(Trunk, convolutions),
        head=partial(Head, convolutions),
        initialise=initialise,
        branch_names={"layer4": ("layer3_{i}",), "classifier": ("classifier3_{i}",)},
        head_options=("dropout",),
    )


NETWORKS = {"vgg16": architecture(3), "vgg19": architecture(4)}
