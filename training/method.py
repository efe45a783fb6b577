"""The interface of a method: one object with a model, a loss and outputs. Training and evaluation use it."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from losses import Terms
from runtime.checkpoints import digest
from training.outputs import ENSEMBLE, MEAN, NETWORK, student


class Method:
    """A method. Its script defines a subclass with ``__init__(args, num_classes)``, ``loss`` and ``predict``.

    model: the network or group that is trained.
    teacher: a frozen network, or None. It is not trained and not saved.
    outputs: name of an output (training/outputs.py) -> its title in tables. They are what is measured. ``loss`` and
        ``predict`` return their logits in this order: [B, R, C], R = len(outputs).
    best: the output whose top-1 accuracy chooses the best epoch (or MEAN).
    """

    model: nn.Module
    teacher: nn.Module | None = None
    outputs: dict[str, str]
    best: str

    @classmethod
    def name(cls, args: Namespace) -> str:
        """The folder of the method's runs, known before there is a model. Other variants than -N override this."""
        return cls.__name__ + ("-N" if getattr(args, "MulStu", False) else "")  # N: whole networks

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, weight: float | Tensor) -> tuple[Terms, Tensor]:
        """One training step's loss. images [B, 3, H, W], labels [B], weight w(e) -> terms, logits of outputs [B, R, C].

        model: ``self.model``, or its DistributedDataParallel replica if there are several processes.
        """
        raise NotImplementedError

    def predict(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """images [B, 3, H, W] -> logits of the outputs [B, R, C], and further tensors [B, ...].

        Their means over the test images go into metrics.jsonl.
        """
        raise NotImplementedError

    def ramp_up(self, epoch: int, num_epochs: int) -> float:
        """w(e), the weight of the group loss in an epoch (from 0). 1 for methods without a ramp-up."""
        return 1.0

    def advice(self, last: dict) -> str | None:
        """What the user should know at the end of a run, or None: a warning. last: the record of the last epoch."""
        return None

    def unchangeable(self) -> dict[str, object]:
        """Values that must not change when a run is resumed, in addition to flags and data: name -> value."""
        return {} if self.teacher is None else {"teacher": digest(self.teacher.state_dict())}


class SingleNetwork(Method):
    """A plain network: [B, 3, H, W] -> [B, C]."""

    outputs = {NETWORK: "network"}
    best = NETWORK

    def __init__(self, model: nn.Module, args: Namespace | None = None):
        self.model, self.args = model, args

    def predict(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model(images).unsqueeze(1), {}


class Group(Method):
    """m students without a leader, and their ensemble: the mean of their logits."""

    def __init__(self, args: Namespace, model: nn.Module):
        self.args, self.model = args, model
        self.outputs = {student(i): f"student {i}" for i in range(args.num_branches)} | {ENSEMBLE: "ensemble"}
        self.best = ENSEMBLE if args.choose_E else MEAN

    def measured(self, z: Tensor) -> Tensor:
        """Logits of the students [B, m, C] -> of the outputs [B, m+1, C]."""
        return torch.cat([z, z.mean(1, keepdim=True)], 1)

    def predict(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.measured(self.model(images)), {}
