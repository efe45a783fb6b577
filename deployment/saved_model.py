"""The form of every file after reading: a method with its weights, and what the file says about it."""

from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from deployment.formats import ExternalModel
from runtime.device import autocast, set_precision
from runtime.errors import UserError
from training.method import Method
from training.outputs import LEADER, WHOLE, students_of


def image_size(dataset: str) -> int:
    """Height and width of a data set's images."""
    return 224 if dataset == "imagenet" else 32


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

    @property
    def external(self) -> bool:
        """True if PyTorch cannot access the weights (.onnx and .pt2 files). Such a model runs on the CPU."""
        return isinstance(self.method.model, ExternalModel)

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

    def logits(self, images: Tensor, output: str) -> Tensor:
        """Logits of one output: [B, 3, H, W] -> [B, C]."""
        logits, _ = self.method.predict(images)
        return logits[output]

    def move(self, device: torch.device) -> None:
        """Move the model to ``device``, and compute there with the precision of the run."""
        set_precision(self.flags.tf32)
        self.method.model.to(device, memory_format=torch.channels_last)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which the run evaluated its networks: half precision with --amp."""
        return autocast(device, self.flags.amp)
