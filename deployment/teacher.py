"""A teacher from a file: what a trained run deploys, an exported network, or a checkpoint of the authors' code."""

from pathlib import Path

from torch import nn

from deployment.reading import read
from runtime import processes
from runtime.errors import UserError


def load_teacher(name: str, num_classes: int, path: str | Path) -> nn.Module:
    """The network that the file deploys: images [B, 3, H, W] -> logits [B, C]. path: as ``deployment.reading.read``.

    It is in evaluation mode, and its weights need no gradients. UserError if the file cannot be read, if it deploys no
    network, or if that is not the network ``name`` with ``num_classes`` classes.
    """
    saved = processes.main_first(lambda: read(path, T_model=name))
    output = saved.deployed_output()
    if output is None:
        raise UserError(f"{path} is a group of which no network is deployed, so it cannot be the teacher: take student "
                        f"I with evaluate.py {path} --export FILE --branch I, and name that file")
    if saved.external:
        raise UserError(f"{path} does not give access to its weights, so it cannot be the teacher: name the run "
                        "itself, or a .pth or .safetensors file of it")
    network = saved.method.network(output)
    if network.name != name:
        raise UserError(f"{path} holds a {network.name}, not a {name}: use --T_model {network.name}, or name another "
                        "file with --T_model_path")
    if len(saved.classes) != num_classes:
        raise UserError(f"{path} holds a network for {len(saved.classes)} classes, and the data set has {num_classes}: "
                        "name a teacher of the same classes with --T_model_path")
    return network.eval().requires_grad_(False)
