"""Read a trained model: a run's checkpoint, an exported file, or a checkpoint of the authors' code."""

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import data_loader
import methods
import models
from deployment import formats
from runtime import processes
from runtime.checkpoints import load_checkpoint
from runtime.device import autocast, place, set_precision
from runtime.errors import UserError, first_words, warn
from training.checkpoint import NOT_STARTED
from training.method import Method, SingleNetwork
from training.outputs import LEADER, WHOLE, students_of

# What is raised if a file is damaged, or of another kind, or does not fit the model.
MISFITS = (LookupError, AttributeError, TypeError, ValueError, RuntimeError)


class SavedModel(NamedTuple):
    """A network or a group from a file.

    flags: those of the run; flags of the command line replace them.
    classes: their names, or their numbers if the file does not name them (``named`` is False then).
    mean, std: of each channel, for pixels in 0..1. size: height and width of the images. epoch: of a run's checkpoint.
    """

    path: Path
    method: Method
    flags: Namespace
    classes: list[str]
    mean: list[float]
    std: list[float]
    size: int
    epoch: int | None = None
    named: bool = True

    def check_classes(self, classes: Sequence[str], way_out: str) -> None:
        """UserError, which ends with ``way_out``, if ``classes``, those of the data, are not the model's.

        If the model does not name its classes, any names fit. But if those in an exported file are numbers, the same
        numbers in another order do not.
        """
        if len(classes) != len(self.classes):
            raise UserError(f"{self.path} holds a network for {len(self.classes)} classes, and the data has "
                            f"{len(classes)}: {way_out}")
        different = [f"{a} there, {b} here" for a, b in zip(self.classes, classes, strict=True) if a != b]
        numbers = self.flags.method == "exported" and set(self.classes) == set(classes)
        if different and (self.named or numbers):
            raise UserError(f"{self.path} holds a network for other classes, {'; '.join(different[:5])}: {way_out}")

    @property
    def external(self) -> bool:
        """True if PyTorch cannot access the weights (.onnx and .pt2 files). Such a model runs on the CPU."""
        return isinstance(self.method.model, formats.ExternalModel)

    def deployed_output(self, branch: int | None = None) -> str | None:
        """The output that is deployed: student ``branch``, else the leader, else the only network.

        None for a group without a leader if ``branch`` is None. UserError if there is no such branch.
        """
        outputs = self.method.outputs
        if list(outputs) == [WHOLE]:
            if branch is not None:
                raise UserError(f"{self.path} holds one network: leave out --branch {branch}")
            return WHOLE
        if branch is None:
            return LEADER if LEADER in outputs else None
        branches = students_of(outputs) + [LEADER] * (LEADER in outputs)  # the leader is the last one
        if branch >= len(branches):
            raise UserError(f"{self.path} has the branches 0 to {len(branches) - 1}, not {branch}: choose one of these")
        return branches[branch]

    def deployed_network(self, branch: int | None = None) -> tuple[str, nn.Module]:
        """-> the deployed output, and its network. UserError if there is none, or its weights are not accessible."""
        output = self.deployed_output(branch)
        if output is None:
            raise UserError(f"{self.path} is a group without a leader: export one of its "
                            f"{len(students_of(self.method.outputs))} students with evaluate.py {self.path} --export "
                            "FILE --branch I, and use that file")
        if self.external:
            raise UserError(f"{self.path} does not give access to its weights: name the run itself, or a .pth or "
                            ".safetensors file of it")
        return output, self.method.network(output)

    def logits(self, images: Tensor, output: str) -> Tensor:
        """Logits of one output: [B, 3, H, W] -> [B, C]."""
        logits, _ = self.method.predict(images)
        return logits[output]

    def move(self, device: torch.device) -> None:
        """Move the model to ``device``, and compute there with the precision of the run."""
        set_precision(self.flags.tf32)
        place(self.method.model, device)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which the run evaluated its networks: half precision with --amp."""
        return autocast(device, self.flags.amp)


class Renormalised(nn.Module):
    """A network for images that were normalised by another mean and std than its own."""

    def __init__(self, network: nn.Module, mean: Sequence, std: Sequence, of_images: tuple[Sequence, Sequence]):
        super().__init__()
        self.network = network
        mean, std, other_mean, other_std = (torch.tensor(c).view(3, 1, 1) for c in (mean, std, *of_images))
        self.register_buffer("scale", other_std / std)
        self.register_buffer("shift", (other_mean - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.scale * images + self.shift)


def load_teacher(name: str, path: str | Path, data: data_loader.Loader) -> nn.Module:
    """The network that a file deploys: images [B, 3, H, W] -> logits [B, C]. path: as in ``read``.

    It is in evaluation mode, and its weights need no gradients. data: the loader of the images. They are normalised
    again if the file says that its network needs another mean and std. UserError if the file cannot be read, if it
    deploys no network, or if that is not the network ``name``, or not for the classes of the data, or, of a network
    from elsewhere, not for images of this size.
    """
    # A teacher gets its students' images; its own data do not matter.
    saved = processes.main_first(lambda: read(path, model=name, dataset="CIFAR10"))
    _, network = saved.deployed_network()
    if models.is_external(name) and data.size != saved.size:
        raise UserError(f"{path} holds a network for images of {saved.size}x{saved.size}, and here they are "
                        f"{data.size}x{data.size}: train with --image_size {saved.size}, or name another teacher")
    saved.check_classes(data.classes, "name a teacher of the same classes with --T_model_path")
    of_file = saved.named or saved.flags.method == "exported"  # else mean and std are assumed ones
    if of_file and [*saved.mean, *saved.std] != [*data.mean, *data.std]:
        network = Renormalised(network, saved.mean, saved.std, (data.mean, data.std))
    return network.eval().requires_grad_(False)


def read(path: str | Path, *, model: str | None = None, method: str | None = None, **flags: object) -> SavedModel:
    """The model in a file, in evaluation mode on the CPU. path: a file, or a run's folder (its best.pth).

    model, method: the network and the method, for files that do not name them. flags: they replace recorded flags;
    None means not given. UserError if the file is missing, damaged, of an unknown kind, or contradicts model or method.
    """
    path = Path(path)
    path = path / "best.pth" if path.is_dir() else path
    given = {name: value for name, value in flags.items() if value is not None}
    exported = path.suffix in formats.FORMATS and path.suffix != ".pth"
    checkpoint = {} if exported else load_checkpoint(path)
    if "flags" in checkpoint:
        saved = read_run(path, checkpoint, model, method, given)
    elif exported or {"state_dict", "model", "classes", "mean", "std"} <= checkpoint.keys():
        saved = read_exported(path, model, method, given)
    else:
        saved = read_weights(path, checkpoint.get("state_dict", checkpoint), model, method, given)
    saved.method.model.eval()
    return saved


def refuse_other(path: Path, given: str | None, recorded: str) -> None:
    """UserError if a network or a method is given (None: it is not), and the file holds another one."""
    if given not in (None, recorded):
        raise UserError(f"{path} holds a {recorded}, not a {given}: name that one, or another file")


def read_run(path: Path, checkpoint: dict, model: str | None, method: str | None, given: dict) -> SavedModel:
    """A checkpoint of this project. Flags that an old checkpoint lacks get their defaults."""
    try:
        recorded, classes, mean, std = (checkpoint[name] for name in ("flags", "classes", "mean", "std"))
        Kind, defaults = methods.find(recorded["method"])
        refuse_other(path, method, methods.family(recorded["method"]))
        named = named_networks(path, checkpoint, model)
        flags = Namespace(**vars(defaults) | recorded | given | named | NOT_STARTED)
        known = data_loader.DATASETS
        if flags.dataset not in known:
            raise UserError(f"{path} was trained on an unknown data set, {flags.dataset}: name one with --dataset")
        built = Kind(flags, len(classes))
        built.model.load_state_dict(checkpoint["state_dict"])
        built.deploy()
        size = flags.image_size or known.get(recorded["dataset"], known[flags.dataset]).size
        epoch = (checkpoint.get("history") or [{}])[-1].get("epoch")
    except MISFITS as error:
        raise UserError(f"{path} is not a checkpoint of a run that can be rebuilt ({type(error).__name__}: "
                        f"{first_words(error)})") from error
    return SavedModel(path, built, flags, classes, mean, std, size, epoch)


def named_networks(path: Path, checkpoint: dict, model: str | None) -> dict:
    """--model and --models, with the files to import that make such networks. model: as the user named it, or None.

    A file is imported if the user names it, or if its path and content are those of the training. UserError otherwise.
    """
    recorded = checkpoint["flags"]
    if recorded.get("models") and recorded["model"] != "+".join(recorded["models"]):  # one of them would be unchecked
        raise ValueError("its --model is not that of its --models")
    names = [name for name in recorded.get("models") or [recorded["model"]] if models.in_file(name)]
    if not names:
        refuse_other(path, model, recorded["model"])
        return {}
    names = [*dict.fromkeys(names)]
    replaced = [name for name in names if model and model.rpartition(":")[2] == name.rpartition(":")[2]]
    if model and not replaced:
        refuse_other(path, model, " or ".join(names))
    if len(replaced) > 1:  # files with a class of the same name: the user means the one that is not as it was
        replaced = [name for name in replaced if not is_as_trained(name, *checkpoint["files"][name])]
    if len(replaced) > 1:
        raise UserError(f"{path} needs {' and '.join(replaced)}, and --model can name one file: restore the others at "
                        f"{' or '.join(checkpoint['files'][name][0] for name in replaced)}")
    found = {}
    for name in names:
        file, sha256 = checkpoint["files"][name]
        own = name.rpartition(":")[2]
        found[name] = f"{file}:{own}"
        if name in replaced:
            found[name] = model
            continue
        if not Path(file).is_file():
            raise UserError(f"{path} needs {name}, and {file} no longer exists: name the file that is to be "
                            "imported with --model PATH/FILE.py:NAME")
        if not is_as_trained(name, file, sha256):
            raise UserError(f"{path} needs {name}, and {file} has changed since the training: restore it, or name the "
                            "file that is to be imported with --model PATH/FILE.py:NAME")
        print(f"imports {file}", file=sys.stderr)
    if recorded.get("models"):
        return {"models": [found.get(name, name) for name in recorded["models"]]}
    return {"model": found[recorded["model"]]}


def is_as_trained(name: str, file: str, sha256: str) -> bool:
    """Whether the file that makes a network is there and has the content that it had at the training."""
    return Path(file).is_file() and models.file_of(f"{file}:{name.rpartition(':')[2]}")[1] == sha256


def read_exported(path: Path, model: str | None, method: str | None, given: dict) -> SavedModel:
    """A file that --export wrote. Its flags are the defaults of train.py."""
    network = formats.load(path, model if models.in_file(model or "") else None)
    if not models.in_file(network.name):
        refuse_other(path, model, network.name)
    elif model:
        network.name = model
    refuse_other(path, method, "baseline")
    large = network.size == data_loader.DATASETS["imagenet"].size and not models.is_external(network.name)
    folders = "imagenet" if large else "folder"
    _, defaults = methods.find("baseline")
    own = {"model": network.name, "method": "exported", "dataset": folders if given.get("data_dir") else None}
    named = network.classes != class_numbers(len(network.classes))
    return SavedModel(path, SingleNetwork(network), Namespace(**vars(defaults) | own | given), network.classes,
                      network.mean, network.std, network.size, named=named)


# --- checkpoints of the authors' code, which do not name their method: their parameter names show it


AUTHORS_DATA = {10: "CIFAR10", 100: "CIFAR100", 1000: "imagenet"}  # by the number of their classes


def read_weights(path: Path, weights: dict[str, Tensor], model: str | None, method: str | None,
                 given: dict) -> SavedModel:
    """A checkpoint of the authors' code, or bare weights of a network of ``create_model``."""
    model = model or "resnet32"
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UserError(f"{path} is not a checkpoint: its state_dict is not a dictionary of weights")
    try:
        weights = models.without_prefixes(weights)
        recognised, group = recognise(weights)
        method = method or recognised
        Kind, defaults = methods.find(method)
        num_classes = count_classes(weights)
        data = AUTHORS_DATA.get(num_classes, "CIFAR10")
        flags = Namespace(**vars(defaults) | {"model": model, "method": method, "dataset": data} | group | given)
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
                        f"names ({first_words(error)}): name the right network (--model, --T_model) and --method"
                        ) from error
    if num_classes not in AUTHORS_DATA and "dataset" not in given:
        raise UserError(f"{path} holds a network for {num_classes} classes, and does not say how its images are "
                        "normalised: name the data that it was trained on with --dataset and --data_dir")
    if "dataset" not in given:
        warn(f"{path} does not say how its images are normalised: by mean and std of {flags.dataset}, because it has "
             f"{num_classes} classes; --dataset names other data")
    mean, std = data_loader.normalisation(flags.dataset, flags.num_workers, flags.data_dir)
    return SavedModel(path, built, flags, class_numbers(num_classes), mean, std,
                      data_loader.DATASETS[flags.dataset].size, named=False)


def recognise(weights: dict[str, Tensor]) -> tuple[str, dict]:
    """-> the method, and flags of its group. weights: with the authors' names, without the prefix "module.".

    OKDDip has an attention, ONE has a gate. Other groups count as individual branches: their weights look the same.
    """
    numbers = [re.match(r"(?:stu|Branch|norm_final_|fc_|(?:layer|classifier)\d_)(\d+)\.", key) for key in weights]
    students = {int(number[1]) for number in numbers if number}
    if not students:
        return "baseline", {}
    method = "OKDDip" if "query_weight.weight" in weights else "ONE" if "control_v1.weight" in weights else "Ind"
    network_based = any(key.startswith("stu") for key in weights)
    # bpscale is for CL-ILR. It changes only gradients, and whole networks do not have it.
    return method, {"num_branches": max(students) + 1, "MulStu": network_based, "bpscale": False}


def count_classes(weights: dict[str, Tensor]) -> int:
    """The number of classes: the length of the last classifier's bias. LookupError if there is no classifier."""
    biases = [key for key in weights if re.search(r"(?:^|\.)(?:fc|classifier)[^.]*(?:\.\d+)?\.bias$", key)]
    if not biases:
        raise LookupError("it has no classifier")
    return len(weights[biases[-1]])


def class_numbers(num_classes: int) -> list[str]:
    """Class names for a file without names: "0", "1", ..."""
    return [str(c) for c in range(num_classes)]
