"""All networks by name. To add one: write its trunk and head, and add an ``Architecture`` to NETWORKS."""

from collections.abc import Callable, Sequence

from . import densenet, external, imagenet, resnet, vgg
from .architecture import Architecture, Network
from .sources import is_external, title

NETWORKS: dict[str, Architecture] = {**resnet.NETWORKS, **vgg.NETWORKS, **densenet.NETWORKS, **imagenet.NETWORKS}
OPTIONS = ("dropout", "efficient", *external.OPTIONS)  # of all networks together


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
        if option not in OPTIONS:
            raise TypeError(f"networks have no option {option!r}; they have {', '.join(OPTIONS)}")
        if value and option != "image_size" and not any(has(name, option) for name in names):
            having = [name for name in NETWORKS if has(name, option)] or ["networks from elsewhere"]
            raise ValueError(f"--{option} is for {', '.join(having)}: {' and '.join(dict.fromkeys(map(title, names)))} "
                             f"do{'es' * (len(set(names)) == 1)} not have it")
    of_external = {option: value for option, value in options.items() if option in external.OPTIONS}
    return [external.architecture(name, shared_trunk, **of_external) if is_external(name)
            else NETWORKS[name].with_options(options) for name in names]


def has(name: str | Callable, option: str) -> bool:
    """Whether a network has an option."""
    return option in external.OPTIONS if is_external(name) else NETWORKS[name].has(option)


def create_model(name: str | Callable, num_classes: int, **options) -> Network:
    """A plain network: images [B, 3, H, W] -> logits [B, C]. options and ValueError: see ``find``."""
    architecture = find(name, **options)
    network = Network(title(name), architecture.trunk(), architecture.head(num_classes=num_classes))
    architecture.initialise(network)
    return network
