"""Read a file into a SavedModel: a run's checkpoint, an exported file, or a checkpoint of the authors' code."""

from argparse import Namespace
from pathlib import Path

from torch import Tensor

import data_loader
import methods
import models
from deployment import authors, formats
from deployment.saved_model import SavedModel, image_size
from runtime.checkpoints import load_checkpoint
from runtime.errors import UserError, first_words
from training.method import SingleNetwork

# What a damaged or foreign file raises when its content is looked up, or does not fit the model.
MISFITS = (LookupError, AttributeError, TypeError, ValueError, RuntimeError)


def read(path: str | Path, *, model: str | None = None, method: str | None = None, T_model: str | None = None,
         **flags: object) -> SavedModel:
    """The model in a file, in evaluation mode on the CPU. path: a file, or a run's folder (its best.pth).

    model, method: the network and the method, for files that do not name them. T_model: the same as model, for a
    teacher; a file may contradict it. flags: they replace recorded flags; None means not given. UserError if the file
    is missing, damaged, of an unknown kind, or contradicts model or method.
    """
    path = Path(path)
    path = path / "best.pth" if path.is_dir() else path
    given = {name: value for name, value in flags.items() if value is not None}
    if path.suffix in formats.FORMATS and path.suffix != ".pth":
        saved = read_exported(path, model, method, given)
    else:
        checkpoint = load_checkpoint(path)
        if "flags" in checkpoint:
            saved = read_run(path, checkpoint, model, method, given)
        elif {"state_dict", "model", "classes", "mean", "std"} <= checkpoint.keys():
            saved = read_exported(path, model, method, given)
        else:
            right = "network with --T_model" if T_model else "ones with --model and --method"
            saved = read_weights(path, checkpoint.get("state_dict", checkpoint), model or T_model, method, given, right)
    saved.method.model.eval()
    return saved


def refuse_other(path: Path, **names: tuple[str | None, str]) -> None:
    """UserError if --model or --method contradicts the file. names: flag -> given value, value in the file."""
    for flag, (given, recorded) in names.items():
        if given not in (None, recorded):
            raise UserError(f"{path} says that its {flag} is {recorded}: leave out --{flag} {given}")


def read_run(path: Path, checkpoint: dict, model: str | None, method: str | None, given: dict) -> SavedModel:
    """A checkpoint of this project. Flags that an old checkpoint lacks get their defaults."""
    try:
        recorded, classes, mean, std = (checkpoint[name] for name in ("flags", "classes", "mean", "std"))
        Kind, defaults = methods.find(recorded["method"])
        refuse_other(path, model=(model, recorded["model"]), method=(method, methods.family(recorded["method"])))
        flags = Namespace(**vars(defaults) | recorded | given)
        if flags.dataset not in data_loader.DATASETS:
            raise UserError(f"{path} was trained on an unknown data set, {flags.dataset}: name one with --dataset")
        formats.check_normalisation(mean, std)
        built = Kind(flags, len(classes))
        built.model.load_state_dict(checkpoint["state_dict"])
        built.deploy()
        size, epoch = image_size(recorded["dataset"]), (checkpoint.get("history") or [{}])[-1].get("epoch")
    except MISFITS as error:
        raise UserError(f"{path} is not a checkpoint of a run that can be rebuilt ({type(error).__name__}: "
                        f"{first_words(error)})") from error
    return SavedModel(path, built, flags, classes, mean, std, size, epoch)


def read_exported(path: Path, model: str | None, method: str | None, given: dict) -> SavedModel:
    """A file that --export wrote. Its flags are the defaults of train.py."""
    network = formats.load(path)
    refuse_other(path, model=(model, network.name), method=(method, "baseline"))
    folders = "imagenet" if network.size == image_size("imagenet") else "folder"
    _, defaults = methods.find("baseline")
    own = {"model": network.name, "method": "exported", "dataset": folders if given.get("data_dir") else None}
    named = network.classes != authors.class_numbers(len(network.classes))
    return SavedModel(path, SingleNetwork(network), Namespace(**vars(defaults) | own | given), network.classes,
                      network.mean, network.std, network.size, named=named)


def read_weights(path: Path, weights: dict[str, Tensor], model: str | None, method: str | None,
                 given: dict, right: str) -> SavedModel:
    """A checkpoint of the authors' code, or bare weights of a network of ``create_model``. right: for the error."""
    model = model or "resnet32"
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UserError(f"{path} is not a checkpoint: its state_dict is not a dictionary of weights")
    try:
        weights = models.without_prefixes(weights)
        recognised, group = authors.recognise(weights)
        method = method or recognised
        Kind, defaults = methods.find(method)
        flags = Namespace(**vars(defaults) | {"model": model, "method": method, "dataset": "CIFAR10"} | group | given)
        num_classes = authors.count_classes(weights)
        built = Kind(flags, num_classes)
        if any(key.startswith("trunk.") for key in weights):
            built.model.load_state_dict(weights)
        else:
            models.load_official_state_dict(built.model, weights)
    except MISFITS as error:
        if any(key.removeprefix("peers.").startswith("trunks.") for key in weights):
            raise UserError(f"{path} holds the bare weights of a group of this project, which do not name the method: "
                            "name the run's folder or its best.pth") from error
        raise UserError(f"{path} does not hold the weights of a {model}, or of a group of them, under the authors' "
                        f"names ({first_words(error)}): name the right {right}") from error
    mean, std = data_loader.normalisation(flags.dataset, flags.num_workers, flags.data_dir)
    return SavedModel(path, built, flags, authors.class_numbers(num_classes), mean, std, image_size(flags.dataset),
                      named=False)
