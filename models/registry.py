"""All networks by name. To add one: write its trunk and head, and add an ``Architecture`` to NETWORKS."""

from functools import partial

from . import densenet, imagenet, resnet, vgg
from .architecture import Architecture, Network

NETWORKS: dict[str, Architecture] = {**resnet.NETWORKS, **vgg.NETWORKS, **densenet.NETWORKS, **imagenet.NETWORKS}


def find(name: str, *, dropout: float = 0.0, efficient: bool = False) -> Architecture:
    """The architecture ``name``, with the options set for its trunk and head.

    dropout: probability in VGG's classifier. efficient: recompute DenseNet's concatenations in backward.
    ValueError if the name is unknown, or if an option is on that the network does not have.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(NETWORKS)}")
    architecture = NETWORKS[name]
    options = {"dropout": dropout, "efficient": efficient}
    for option, value in options.items():
        if value and not has_option(architecture, option):
            having = ", ".join(other for other in NETWORKS if has_option(NETWORKS[other], option))
            raise ValueError(f"--{option} is for {having}: {name} does not have it")
    return architecture._replace(
        trunk=partial(architecture.trunk, **{option: options[option] for option in architecture.trunk_options}),
        head=partial(architecture.head, **{option: options[option] for option in architecture.head_options}),
    )


def has_option(architecture: Architecture, option: str) -> bool:
    """Whether the trunk or the head takes the option."""
    return option in architecture.trunk_options + architecture.head_options


def create_model(name: str, num_classes: int, **options) -> Network:
    """A plain network: images [B, 3, H, W] -> logits [B, C]. options and ValueError: see ``find``."""
    architecture = find(name, **options)
    network = Network(name, architecture.trunk(), architecture.head(num_classes=num_classes))
    architecture.initialise(network)
    return network
