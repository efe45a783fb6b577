"""Every network by name. To add one: build its trunk and head, and put an ``Architecture`` in this dictionary."""

from . import resnet
from .architecture import Architecture, Network

NETWORKS: dict[str, Architecture] = {**resnet.NETWORKS}


def find(name: str) -> Architecture:
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def create_model(name: str, num_classes: int, **options) -> Network:
    """A plain network by name: images [B, 3, H, W] -> logits [B, C]. ValueError where the name is unknown."""
    architecture = find(name)
    network = Network(name, architecture.trunk(**options), architecture.head(num_classes=num_classes, **options))
    architecture.initialise(network)
    return network
