"""The interface of a method: one object with a model, a loss and outputs. Training and evaluation use it."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from losses import Terms, ramp_up
from training.outputs import LEADER, MEAN, WHOLE, group_outputs, student, student_number


class Method:
    """A method. Its script defines a subclass with ``__init__(args, num_classes)``, ``loss`` and ``predict``.

    model: the network or group that is trained.
    teacher: a frozen network, or None. It is not trained and not saved.
    outputs: name of an output (training/outputs.py) -> its title in tables. They are what is measured: ``loss`` and
        ``predict`` return the logits of each, {name: logits [B, C]}.
    best: the output whose top-1 accuracy chooses the best epoch (or MEAN).
    args: the flags. None for an exported network.
    """

    args: Namespace | None
    model: nn.Module
    teacher: nn.Module | None = None
    outputs: dict[str, str]
    best: str

    @classmethod
    def name(cls, args: Namespace) -> str:
        """The name of the folder of its runs: that of the class, with -N if network-based. Override it for variants."""
        return cls.__name__ + ("-N" if getattr(args, "MulStu", False) else "")

    @classmethod
    def views(cls, args: Namespace) -> int:
        """How many views of an image ``loss`` takes; 1: images [B, 3, H, W]. ``predict`` always takes one."""
        return 1

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor,
             weight: float | Tensor) -> tuple[Terms, dict[str, Tensor]]:
        """One training step's loss. images [B, 3, H, W], labels [B], weight w(e) -> terms, {output: logits [B, C]}.

        With views (``dataloader``), images are [B, V, 3, H, W].
        model: ``self.model``, or its DistributedDataParallel replica if there are several processes.
        """
        raise NotImplementedError

    def predict(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """images [B, 3, H, W] -> {output: logits [B, C]}, and further tensors [B, ...] by name.

        metrics.jsonl records the means of the further tensors over the test images.
        """
        raise NotImplementedError

    def ramp_up(self, epoch: int, num_epochs: int) -> float:
        """w(e), the weight of the group loss in an epoch, counted from 0. 1 without ``utils.ramp_up_flags``."""
        args = self.args
        return ramp_up(epoch, num_epochs, args.start_consistency, args.length) if "length" in args else 1.0

    def prepare(self, train_loader) -> None:
        """Called only before a training: to load a teacher, or to check the data."""

    def before_step(self, step: int, step_of_epoch: int) -> None:
        """``Stepper.step`` calls this first. Both numbers count from 1: in the whole training, and in the epoch."""

    def after_step(self, step: int, step_of_epoch: int) -> None:
        """``Stepper.step`` calls this after the optimizer. What it changes must be part of the model, to be saved."""

    def after_epoch(self, held_out: Iterable | None, autocast: AbstractContextManager, watch: Callable = iter) -> None:
        """Called between the training and the evaluation of an epoch. held_out: the loader of the held-out images, or
        None. watch: as in ``evaluate``.

        A run that is stopped during the evaluation and resumed calls it again: the second call must change nothing.
        """

    def deploy(self) -> None:
        """Called after a checkpoint was loaded for evaluation or export, not for training."""

    def network(self, output: str) -> nn.Module:
        """The plain network of an output that can be deployed. It shares its weights with the model."""
        raise NotImplementedError

    def advice(self, last: dict) -> str | None:
        """A warning for the end of a run, or None. last: the record of the last epoch."""
        return None


class SingleNetwork(Method):
    """A plain network: [B, 3, H, W] -> [B, C]."""

    outputs = {WHOLE: "network"}
    best = WHOLE

    def __init__(self, model: nn.Module, args: Namespace | None = None):
        self.model, self.args = model, args

    def predict(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {WHOLE: self.model(images)}, {}

    def network(self, output: str) -> nn.Module:
        return self.model


class Group(Method):
    """m students, and their ensemble: the mean of their logits.

    kind: what a student is called. deployed: the title of the deployed network, if it is not one of the students. It is
    the first output.
    """

    def __init__(self, args: Namespace, model: nn.Module, kind: str = "student", deployed: str = ""):
        self.args, self.model = args, model
        names = getattr(args, "models", None) or [""] * args.num_branches
        students = {student(i): f"{kind} {i}" + (f", {name}" if name else "") for i, name in enumerate(names)}
        self.outputs = ({LEADER: deployed} if deployed else {}) | students | {WHOLE: "ensemble"}
        self.best = WHOLE if args.choose_E else LEADER if deployed else MEAN

    def measured(self, z: Tensor, *others: Tensor) -> dict[str, Tensor]:
        """What the model returns, first the students' logits z [B, m, C] -> {output: logits [B, C]}."""
        return group_outputs(z)

    def predict(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        returned = self.model(images)
        return self.measured(*(returned if isinstance(returned, tuple) else (returned,))), {}

    def network(self, output: str) -> nn.Module:
        return self.model.student(student_number(output))


class GroupInALoop(nn.Module):
    """A method without its script, for your own training loop: ``hubconf.group`` makes it.

    model: the group; ``model.student(i)`` is one of its networks, ``student(-1)`` the leader of OKDDip.
    docs/own_project.md says what PCL and OKDPH deploy.
    """

    def __init__(self, method: Method):
        super().__init__()
        self.method, self.model = method, method.model
        self.before_step, self.after_step = method.before_step, method.after_step  # PCL and OKDPH need them

    def forward(self, images: Tensor):
        """images [B, 3, H, W], in training of PCL, KDCL and OKDPH views [B, V, 3, H, W] -> what the model returns."""
        return self.model(images)

    def loss(self, images: Tensor, labels: Tensor, weight: float | Tensor = 1.0) -> Terms:
        """The loss of a batch and its terms: ``loss(...).total.backward()``. labels [B] or [B, C], weight: w(e)."""
        terms, _ = self.method.loss(self.model, images, labels, weight)
        return terms
