"""ImageNet ResNets (He et al. 2016), made from torchvision's. The head starts with the last stage.

    images [B, 3, 224, 224] --Trunk--> [B, width, 14, 14] --Head--> (h [B, D], z [B, C])

Parameters keep torchvision's names: ``load_official_state_dict`` loads torchvision's weights.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.models import ResNet, resnet18, resnet34, resnet50

from .architecture import Architecture
from .architecture import Head as BaseHead
from .resnet import initialise  # convolutions Kaiming-normal (fan_out), as in torchvision


class Trunk(nn.Sequential):
    """First convolution, pooling and stages 1 to 3."""

    def __init__(self, build: Callable[..., ResNet]):
        parts = dict(build(weights=None).named_children())
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
        super().__init__(OrderedDict((name, parts[name]) for name in names))


class Head(BaseHead):
    """Stage 4, average pooling and the classifier."""

    def __init__(self, build: Callable[..., ResNet], num_classes: int):
        super().__init__()
        network = build(weights=None, num_classes=num_classes)
        self.layer4, self.avgpool, self.fc = network.layer4, network.avgpool, network.fc

    def feature_map(self, x: Tensor) -> Tensor:
        return self.layer4(x)

    def classify(self, f: Tensor) -> tuple[Tensor, Tensor]:
        h = self.avgpool(f).flatten(1)  # [B, D, 7, 7] -> [B, D]
        return h, self.fc(h)


def architecture(build: Callable[..., ResNet]) -> Architecture:
    """The architecture of torchvision's network ``build()``."""
    return Architecture(
        trunk=partial(Trunk, build),
        head=partial(Head, build),
        initialise=initialise,
        branch_names={
            "layer4": ("layer4_{i}", "layer3_{i}"),
            "fc": ("classifier4_{i}", "classifier3_{i}", "fc_{i}"),
        },
        image_size=224,
    )


NETWORKS = {"resnet18": architecture(resnet18), "resnet34": architecture(resnet34), "resnet50": architecture(resnet50)}
