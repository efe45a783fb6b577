"""Where networks from elsewhere come from: torchvision, timm or a Python file; and their own weights."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from .cut import origin


def is_external(name: str | Callable) -> bool:
    """Whether a network comes from elsewhere: its name says from where, or is a function or class that makes it."""
    return callable(name) or ":" in name


def title(name: str | Callable) -> str:
    """What messages call a network."""
    return name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)


def in_file(name: str) -> bool:
    """Whether a Python file makes the network."""
    return is_external(name) and not in_library(name)


def in_library(name: str | Callable) -> bool:
    """Whether torchvision or timm makes the network."""
    return isinstance(name, str) and name.partition(":")[0] in ("torchvision", "timm")


def maker(name: str | Callable) -> Callable[..., nn.Module]:
    """The function or class that makes the network when it is called with ``num_classes=C``."""
    if callable(name):
        return takes_num_classes(name)
    source, _, own = name.partition(":")
    if source == "torchvision":
        if own not in torchvision.models.list_models(torchvision.models):
            raise ValueError(f"torchvision has no classification network {own!r}: see torchvision.models.list_models()")
        return torchvision.models.get_model_builder(own)
    if source == "timm":
        timm = import_timm(name)
        if not timm.is_model(own):
            raise ValueError(f"timm has no network {own!r}: see timm.list_models()")
        return partial(timm.create_model, own)
    path, _, own = name.rpartition(":")
    make = getattr(import_file(path, name), own, None)
    if make is None:
        raise ValueError(f"{path} has no {own!r}: --model {path}:NAME needs the name of a function or class in it")
    return takes_num_classes(make, name)


def takes_num_classes(make: Callable, name: str = "") -> Callable:
    """``make``. ValueError if it cannot be called with ``num_classes=C``."""
    try:
        inspect.signature(make).bind(num_classes=10)
    except TypeError as error:
        raise ValueError(f"{name or title(make)} cannot be called with num_classes=C ({error}): write a function that "
                         "takes it and returns the network") from error
    return make


def import_timm(name: str):
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{name} needs a package that is not installed: pip install timm") from error
    return timm


def import_file(path: str, name: str):
    """Import a Python file. Its folder is searched for what it imports, after all other places."""
    file = Path(path).resolve()
    if not file.is_file():
        raise ValueError(f"unknown network {name!r}: there is no file {path}")
    module_name = f"{file.stem}_{file_of(name)[1][:12]}"  # pickle finds its classes by this name
    if module_name in sys.modules:
        return sys.modules[module_name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None:
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file raises
        del sys.modules[module_name]
        raise ValueError(f"{path} cannot be imported ({origin(error)}){hidden(error, file.parent)}") from error
    return module


def hidden(error: BaseException, folder: Path) -> str:
    """What to do if an error comes from a module in ``folder`` that another one of the same name hides; else "".

    The other one is usually of this project: ``models`` and ``utils`` are names that many have.
    """
    name = getattr(getattr(error, "obj", None), "__name__", None) or getattr(error, "name", None) or ""
    top = name.partition(".")[0]
    other = getattr(sys.modules.get(top), "__file__", None)
    if not other or folder in Path(other).parents or not ((folder / f"{top}.py").exists() or (folder / top).is_dir()):
        return ""
    return f": {other} hides the {top} next to it: give yours another name"


def file_of(name: str) -> list[str]:
    """PATH/FILE.py:NAME -> the absolute path of the file, and the SHA-256 of its content."""
    path = Path(name.rpartition(":")[0]).resolve()
    return [str(path), hashlib.sha256(path.read_bytes()).hexdigest()]


def weights_of(name: str) -> dict[str, Tensor]:
    """The library's own weights of a network. They are downloaded, or read from the library's cache."""
    source, _, own = name.partition(":")
    try:
        if source == "timm":
            return import_timm(name).create_model(own, pretrained=True).state_dict()
        default_weights(own)
        with torch.random.fork_rng(devices=[]):
            return torchvision.models.get_model(own, weights="DEFAULT", progress=False).state_dict()
    except ValueError:
        raise
    except Exception as error:  # of the network, the server or the file: timm and torchvision raise many kinds
        raise ValueError(f"the weights of {name} cannot be downloaded ({origin(error)}): connect to the internet, or "
                         "start without --pretrained") from error


def default_weights(own: str):
    """torchvision's entry of the weights of a network."""
    weights = torchvision.models.get_model_weights(own)
    if not len(weights):
        raise ValueError(f"torchvision has no weights for {own}: leave out --pretrained")
    return weights.DEFAULT


def own_size(name: str) -> int:
    """The height and width that the library gives for a network."""
    source, _, own = name.partition(":")
    if source == "timm":
        return import_timm(name).get_pretrained_cfg(own).input_size[-1]
    weights = torchvision.models.get_model_weights(own)
    return weights.DEFAULT.transforms().crop_size[0] if len(weights) else 224


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std that the library's own weights of a network were trained with."""
    source, _, own = name.partition(":")
    constants = import_timm(name).get_pretrained_cfg(own) if source == "timm" else default_weights(own).transforms()
    return tuple(constants.mean), tuple(constants.std)


def read(path: str) -> dict[str, Tensor]:
    """The weights in a file: .safetensors, or what torch.save wrote, a dictionary or its entry ``state_dict``."""
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"--init: there is no file {path}") from error
    except Exception as error:  # of pickle, zip or safetensors
        raise ValueError(f"--init: {path} cannot be read ({origin(error)})") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"--init: {path} does not hold a dictionary of weights")
    return weights
