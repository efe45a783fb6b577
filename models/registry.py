"""All networks by name. To add one: write its trunk and head, and add an ``Architecture`` to NETWORKS."""

from collections.abc import Sequence
from functools import partial

from . import densenet, imagenet, resnet, vgg
from .architecture import Architecture, Network

NETWORKS: dict[str, Architecture] = {**resnet.NETWORKS, **vgg.NETWORKS, **densenet.NETWORKS, **imagenet.NETWORKS}


def find(name: str, *, dropout: float = 0.0, efficient: bool = False) -> Architecture:
    """The architecture ``name``, with the options set for its trunk and head.

    dropout: probability in VGG's classifier. efficient: recompute DenseNet's concatenations in backward.
    ValueError if the name is unknown, or if an option is on that the network does not have.
    """
    return find_each([name], dropout=dropout, efficient=efficient)[0]


def find_each(names: Sequence[str], **options) -> list[Architecture]:
    """The architecture of each student. An option is set for those networks that have it.

    ValueError if a name is unknown, or if an option is on that none of the networks has.
    """
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise ValueError(f"unknown network {unknown[0]!r}; known are {', '.join(NETWORKS)}")
    for option, value in options.items():
        if value and not any(has_option(NETWORKS[name], option) for name in names):
            having = ", ".join(other for other in NETWORKS if has_option(NETWORKS[other], option))
            raise ValueError(f"--{option} is for {having}: {' and '.join(dict.fromkeys(names))} "
                             f"do{'es' * (len(set(names)) == 1)} not have it")
    return [NETWORKS[name]._replace(
        trunk=partial(NETWORKS[name].trunk, **{o: options[o] for o in NETWORKS[name].trunk_options if o in options}),
        head=partial(NETWORKS[name].head, **{o: options[o] for o in NETWORKS[name].head_options if o in options}),
    ) for name in names]


def has_option(architecture: Architecture, option: str) -> bool:
    """Whether the trunk or the head takes the option."""
    return option in architecture.trunk_options + architecture.head_options


def create_model(name: str, num_classes: int, **options) -> Network:
    """A plain network: images [B, 3, H, W] -> logits [B, C]. options and ValueError: see ``find``."""
    architecture = find(name, **options)
    network = Network(name, architecture.trunk(), architecture.head(num_classes=num_classes))
    architecture.initialise(network)
    return network
