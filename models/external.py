"""Networks from elsewhere: ``torchvision:NAME``, ``timm:NAME`` and ``PATH/FILE.py:NAME``.

    images [B, 3, S, S] --Whole--> (h [B, D], z [B, C])                 a network as it is: network-based groups
    images [B, 3, S, S] --Trunk--> x --Tail--> (h [B, D], z [B, C])     cut at a submodule: branch-based groups

The network stays what it is: its own code runs, its parts keep their names and its weights are drawn in its own way.
h is the input of its classifier: the last nn.Linear, or the module that ``classifier`` names.
"""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .architecture import Architecture, Head, with_versions
from .cut import Cut, cut, first, in_use, origin, pieces, tried
from .sources import in_library, maker, own_size, read, title, weights_of

OPTIONS = ("classifier", "branch_at", "pretrained", "init", "image_size")
BUILT: WeakKeyDictionary[nn.Module, str | int] = WeakKeyDictionary()  # modules with weights in use -> who made them


def architecture(name: str | Callable, shared_trunk: bool = False, classifier: str | None = None,
                 branch_at: str | None = None, pretrained: bool = False, init: str | None = None,
                 image_size: int = 32) -> Architecture:
    """The architecture of a network from elsewhere. Nothing is built yet, but a FILE.py is imported.

    name: see above, or a function or class that makes the network when it is called with ``num_classes=C``.
    shared_trunk: branches will share the trunk, so ``branch_at`` must name the submodule where the head begins.
    pretrained: start from the library's own weights. init: a file with the weights to start from, under the network's
    own names. Of both, the classifier is new if it is missing or has another number of classes.
    image_size: S. ValueError if the network cannot be used; building its parts raises ValueError, too.
    """
    source = Source(name, classifier, pretrained, init, image_size)
    if shared_trunk and not branch_at:
        raise ValueError(f"branches need a place where {source.name} is cut: {source.places()}")
    return Architecture(
        trunk=partial(Trunk, source, branch_at) if branch_at else nn.Identity,  # the images
        head=partial(Tail, source, branch_at) if branch_at else partial(Whole, source),
        initialise=lambda module: None,  # the network has drawn its weights when it was built
        branch_names={},
        image_size=image_size,
    )


# --- building


class Source:
    """Where a network comes from, and how it is built."""

    def __init__(self, origin: str | Callable, classifier: str | None = None, pretrained: bool = False,
                 init: str | None = None, image_size: int = 32):
        self.origin, self.name, self.classifier = origin, title(origin), classifier
        self.pretrained, self.init, self.image_size = pretrained, init, image_size
        self.make = maker(origin)
        if pretrained and not in_library(origin):
            raise ValueError(f"--pretrained is for the networks of torchvision and timm, which have weights of their "
                             f"own: start {self.name} from a file with --init")

    def __reduce__(self):
        """What pickle keeps. A pickled network has its weights, so it needs no initial ones."""
        return Source, (self.origin, self.classifier, False, None, self.image_size)

    def build(self, num_classes: int) -> tuple[nn.Module, list[str]]:
        """-> a new network with its own or the given initial weights, and the names of those that do not fit."""
        try:
            network = self.make(num_classes=num_classes)
        except Exception as error:  # whatever the code of somebody else raises
            raise ValueError(f"{self.name} cannot be built with num_classes={num_classes} ({origin(error)})") from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self.name} returns {type(network).__name__}, not an nn.Module: it must return the "
                             "network")
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
            raise ValueError(f"{self.name} has lazy layers, whose weights would be the same in each student: give its "
                             "layers their sizes")
        who = self.origin if isinstance(self.origin, str) else id(self.origin)
        own = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
        if any(BUILT.get(module) == who for module in own):
            raise ValueError(f"{self.name} returns the same weights at each call, and students must have their own: "
                             "make all layers inside it")
        BUILT.update(dict.fromkeys(own, who))
        network.train()
        if not (self.pretrained or self.init):
            return network, []
        weights, file = (weights_of(self.name), "its weights") if self.pretrained else (read(self.init), self.init)
        return network, load_but_classifier(network, weights, self.find_classifier(network),
                                            f"{self.name} cannot start from {file}")

    def find_classifier(self, network: nn.Module) -> str:
        """The name of the classifier: --classifier, or the last nn.Linear."""
        linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        if self.classifier is None:
            if not linears:
                raise ValueError(f"{self.name} has no nn.Linear: name the module whose input are its features with "
                                 "--classifier")
            return linears[-1]
        if self.classifier not in dict(network.named_modules()):
            raise ValueError(f"--classifier: {self.name} has no submodule {self.classifier!r}; its linear layers are "
                             f"{', '.join(linears) or 'none'}")
        return self.classifier

    def check(self, network: nn.Module, forward: Callable, num_classes: int | None) -> None:
        """ValueError if images of image_size do not give h [B, D] and finite logits [B, C].

        num_classes: C, None if it does not matter here.
        """
        size = self.image_size
        images = torch.linspace(-1, 1, 2 * 3 * size * size).view(2, 3, size, size)
        try:
            tried(network, lambda: forward(images), training=True)
            h, z = tried(network, lambda: forward(images))
        except ValueError:
            raise
        except Exception as error:  # PyTorch's and timm's, if shapes do not fit; or whatever the network raises
            raise ValueError(f"{self.name} does not take images of {size}x{size} ({origin(error)}): choose another "
                             "--image_size") from error
        if not isinstance(z, Tensor):
            raise ValueError(f"{self.name} returns a {type(z).__name__}: it must return the logits [B, C] alone")
        if z.dim() != 2 or z.shape[1] != (num_classes or z.shape[1]):
            raise ValueError(f"{self.name} returns {list(z.shape[1:])} logits for {num_classes} classes: its last "
                             "layer must have num_classes outputs")
        if not isinstance(h, Tensor) or h.dim() != 2:
            features = f"{h.dim()}-dimensional features {list(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"the classifier of {self.name} takes {features}, not [B, D]: name another module with "
                             "--classifier")
        if not z.isfinite().all():
            raise ValueError(f"{self.name} returns logits that are not finite, before any training")

    def cut(self, network: nn.Module, place: str) -> dict[bool, Cut]:
        """The cut of the network for each of its modes. Its code may depend on them: F.dropout(x, training=...)."""
        classifier = self.find_classifier(network)
        if not place or place not in dict(network.named_modules()):
            raise ValueError(f"--branch_at: {self.name} has no submodule {place!r}: {self.places()}")
        try:
            cuts = {}
            for mode in (False, True):
                network.train(mode)
                cuts[mode] = cut(network, place, classifier)
        except ValueError as error:
            raise ValueError(f"--branch_at: {self.name} cannot be cut at {place}, because {error}: "
                             f"{self.places()}") from error
        return cuts

    def places(self) -> str:
        """Where the network can be cut, of its first two levels of submodules: for an error."""
        network, _ = self.build(10)
        names = [name for name, module in network.named_modules()
                 if name and name.count(".") < 2 and any(True for _ in module.parameters())]
        fitting = [name for name in names if self.fits(network, name)]
        if fitting:
            return f"--branch_at {' or '.join(fitting)}"
        return "no submodule of its first two levels fits; network-based groups (--MulStu) need no cut"

    def fits(self, network: nn.Module, place: str) -> bool:
        """Whether the network can be cut at a submodule."""
        try:
            cut(network, place, self.find_classifier(network))
        except ValueError:
            return False
        return True


def load_but_classifier(network: nn.Module, weights: dict[str, Tensor], classifier: str, misfit: str) -> list[str]:
    """Load weights. -> the names of those that are left out: a classifier's, if it has another shape or is missing.

    ValueError, which begins with ``misfit``, if anything else does not fit.
    """
    own = network.state_dict()
    of_classifier = [key for key in own if key.startswith(f"{classifier}.")]
    left_out = []
    if any(key not in weights or weights[key].shape != own[key].shape for key in of_classifier):
        left_out = of_classifier  # all of them: new weights and an old bias would not belong together
        weights = {key: value for key, value in weights.items() if key not in left_out}
    missing = [key for key in own if key not in weights and key not in left_out]
    unknown = [key for key in weights if key not in own]
    shapes = [key for key in weights if key in own and weights[key].shape != own[key].shape]
    for problem, keys in {"missing": missing, "unknown": unknown, "of another shape": shapes}.items():
        if keys:
            raise ValueError(f"{misfit}: {len(keys)} are {problem}, the first is {keys[0]}")
    network.load_state_dict(with_versions(weights, network), strict=False)
    return left_out


def default_size(name: str) -> int:
    """Height and width of the images that a network gets if nobody says so: 32 if its smallest map is then 4x4 or more.

    Else the size that torchvision or timm gives for it. Networks from files get 32.
    """
    if not in_library(name):
        return 32
    with torch.random.fork_rng(devices=[]):
        network, _ = Source(name).build(10)
    smallest = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:  # others may compute gates of channels
            module.register_forward_hook(lambda _, x, y: smallest.append(min(y.shape[-2:])))
    try:
        tried(network, lambda: network(torch.zeros(2, 3, 32, 32)))
    except Exception:  # whatever a network raises for images that are too small
        return own_size(name)
    return 32 if min(smallest, default=0) >= 4 else own_size(name)


# --- parts of a network


class Whole(Head):
    """A network as it is: images [B, 3, S, S] -> h [B, D], z [B, C]."""

    def __init__(self, source: Source, num_classes: int):
        super().__init__()
        (self.network, self.new_weights), self.name = source.build(num_classes), source.name
        self.classifier = source.find_classifier(self.network)
        source.check(self.network, self.forward, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h: list[Tensor] = []
        classifier = self.network.get_submodule(self.classifier)
        hook = classifier.register_forward_pre_hook(lambda _, *inputs: h.append(first(*inputs)), with_kwargs=True)
        try:
            z = self.network(images.clone())  # other students take the same images, and it may change them in place
        finally:
            hook.remove()
        if not isinstance(z, Tensor):
            mode = "training" if self.network.training else "evaluation"
            raise ValueError(f"{self.name} returns a {type(z).__name__} in {mode}: it must return the logits [B, C] "
                             "alone")
        if len(h) != 1:
            raise ValueError(f"{self.name} calls its classifier {self.classifier} {len(h)} times, not once: name "
                             "another module with --classifier")
        return h[0], z


class Half(nn.Module):
    """The submodules of one side of a cut, under their own names, and the code between them.

    What comes before the cut: images [B, 3, S, S] -> x. What comes after it: x -> h [B, D], z [B, C].
    """

    side: int  # in ``Cut``
    in_place: bool  # whether it gets a copy of its input, because it may change it in place

    def __init__(self, source: Source, place: str, num_classes: int | None = None):
        super().__init__()
        self.source, self.place = source, place
        self.network, self.new_weights = source.build(num_classes or 10)
        cuts = source.cut(self.network, place)
        trunk, tail = (half.code for half in cuts[False])
        source.check(self.network, lambda images: tail(self.network, trunk(self.network, images)), num_classes)
        self.code = {mode: sides[self.side].code for mode, sides in cuts.items()}
        if self.side == 0:
            self.new_weights = []  # none of the trunk's: its classifier is thrown away
            self.compare(cuts[False])
        else:
            self.in_place = any(self.changes_its_input(halves, mode) for mode, halves in cuts.items())
        of_trunk, of_tail = (cuts[True][side].used | cuts[False][side].used for side in (0, 1))
        for name in pieces(self.network, place, source.find_classifier(self.network)):
            # Both may use a part without weights. What no code uses is the tail's, because it is exported, too.
            if not in_use(name, of_trunk) if self.side == 0 else in_use(name, of_trunk) and not in_use(name, of_tail):
                self.remove(name)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.code[self.training](self.network, x.clone() if self.in_place else x)

    def images(self) -> Tensor:
        size = self.source.image_size
        return torch.linspace(-1, 1, 3 * 3 * size * size).view(3, 3, size, size)

    def remove(self, name: str) -> None:
        """Remove a submodule, weight or buffer. A stand-in keeps its name: the network's own ``train`` may use it."""
        parent, _, child = name.rpartition(".")
        parent = self.network.get_submodule(parent)
        setattr(parent, child, nn.Identity() if child in parent._modules else None)

    def changes_its_input(self, halves: Cut, training: bool) -> bool:
        """Whether the tail changes x in place, which is also the input of the other tails."""
        x = tried(self.network, lambda: halves.trunk.code(self.network, self.images()), training)
        if not isinstance(x, Tensor):
            raise ValueError(f"--branch_at: {self.source.name} cannot be cut at {self.place}, because a "
                             f"{type(x).__name__} crosses the cut, not one tensor: network-based groups (--MulStu) "
                             "need no cut")
        changes = x._version
        tried(self.network, lambda: halves.tail.code(self.network, x), training)
        return x._version != changes

    def compare(self, halves: Cut) -> None:
        """ValueError if the cut network gives other logits than the network."""
        expected = tried(self.network, lambda: self.network(self.images()))
        x = tried(self.network, lambda: halves.trunk.code(self.network, self.images()))
        _, z = tried(self.network, lambda: halves.tail.code(self.network, x))
        if not torch.allclose(z, expected, equal_nan=True):
            raise ValueError(f"--branch_at: {self.source.name} gives other logits if it is cut at {self.place}: "
                             "network-based groups (--MulStu) need no cut")

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "code"}

    def __setstate__(self, state: dict) -> None:
        """Pickle cannot hold compiled code: it is made anew, from a network that is thrown away."""
        self.__dict__.update(state)
        with torch.random.fork_rng(devices=[]):
            cuts = self.source.cut(self.source.build(10)[0], self.place)
        self.code = {mode: sides[self.side].code for mode, sides in cuts.items()}


class Trunk(Half):
    """What comes before the cut."""

    side, in_place = 0, True  # other students may take the same images, which are quickly copied


class Tail(Half, Head):
    """What comes after the cut."""

    side = 1
