"""All networks by name. To add one: write its trunk and head, and add an ``Architecture`` to NETWORKS."""

from collections.abc import Callable, Sequence
from functools import partial

from . import densenet, external, imagenet, resnet, vgg
from .architecture import Architecture, Network
from .sources import is_external, title

NETWORKS: dict[str, Architecture] = {**resnet.NETWORKS, **vgg.NETWORKS, **densenet.NETWORKS, **imagenet.NETWORKS}


def find(name: str | Callable, **options) -> Architecture:
    """The architecture ``name``, one of NETWORKS or a network from elsewhere (models/external.py), with its options.

    dropout: probability in VGG's classifier. efficient: recompute DenseNet's concatenations in backward.
    For networks from elsewhere: see ``external.architecture``.
    ValueError if the name is unknown, or if an option is on that the network does not have.
    """
    return find_each([name], **options)[0]


def find_each(names: Sequence[str | Callable], shared_trunk: bool = False, **options) -> list[Architecture]:
    """The architecture of each student. An option is set for those networks that have it.

    shared_trunk: they are branches. ValueError if a name is unknown, or if an option is on that no network has.
    """
    unknown = [name for name in names if not is_external(name) and name not in NETWORKS]
    if unknown:
        raise ValueError(f"unknown network {unknown[0]!r}; known are {', '.join(NETWORKS)}, and torchvision:NAME, "
                         "timm:NAME, FILE.py:NAME")
    for option, value in options.items():
        if value and option != "image_size" and not any(option in options_of(name) for name in names):
            having = [name for name in NETWORKS if option in options_of(name)] or ["networks from elsewhere"]
            raise ValueError(f"--{option} is for {', '.join(having)}: {' and '.join(dict.fromkeys(map(title, names)))} "
                             f"do{'es' * (len(set(names)) == 1)} not have it")
    return [architecture(name, shared_trunk, {o: options[o] for o in options_of(name) if o in options})
            for name in names]


def options_of(name: str | Callable) -> tuple[str, ...]:
    """The options that a network has."""
    if is_external(name):
        return external.OPTIONS
    return NETWORKS[name].trunk_options + NETWORKS[name].head_options


def architecture(name: str | Callable, shared_trunk: bool, options: dict) -> Architecture:
    """The architecture of one network with its own options."""
    if is_external(name):
        return external.architecture(name, shared_trunk, **options)
    own = NETWORKS[name]
    return own._replace(
        trunk=partial(own.trunk, **{o: options[o] for o in own.trunk_options if o in options}),
        head=partial(own.head, **{o: options[o] for o in own.head_options if o in options}))


def create_model(name: str | Callable, num_classes: int, **options) -> Network:
    """A plain network: images [B, 3, H, W] -> logits [B, C]. options and ValueError: see ``find``."""
    own = find(name, **options)
    network = Network(title(name), own.trunk(), own.head(num_classes=num_classes))
    own.initialise(network)
    return network
