"""One training step, and everything that it changes: weights, optimizer, schedule, gradient scaler, running sums.

A step reads nothing back from the device. The sums stay there until the progress line or the end of the epoch.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from models import count_batches
from runtime import processes
from runtime.device import autocast
from runtime.errors import UserError
from training.method import Method
from training.metrics import RunningSums, in_rows, topk_correct


class Trainer:
    """The state of a training. ``step`` changes it; a checkpoint holds ``state_dict``.

    amp: "bf16" or "fp16", the precision of the networks. Losses stay in float32; fp16 scales its gradients.
    compiled: trace the loss with torch.compile, on CUDA into CUDA graphs.
    sync_bn: with several processes, BatchNorm over the images of all of them.
    """

    def __init__(self, method: Method, lr: float, wd: float, milestones: list[int], device: torch.device,
                 amp: str = "off", compiled: bool = False, sync_bn: bool = False):
        self.model = method.model.to(device, memory_format=torch.channels_last)
        if method.teacher is not None:
            method.teacher.to(device, memory_format=torch.channels_last)
        self.replica = processes.replicated(self.model, device, sync_bn)
        self.device, self.compiled = device, compiled
        self.optimizer, self.scheduler = sgd(self.model, lr, wd, milestones)
        self.amp = amp
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.loss = torch.compile(method.loss, mode=mode, dynamic=False) if compiled else method.loss
        self.method = method
        self.sums, self.checked_steps, self.uncounted = RunningSums(device), 0, 0
        self.terms: list[str] = []  # the names of the loss's terms, known after a step
        self.earlier_steps = 0  # of the epochs before

    def autocast(self) -> torch.autocast:
        """The context in which the networks compute."""
        return autocast(self.device, self.amp)

    @property
    def lr(self) -> float:
        """The learning rate of the current epoch."""
        return self.scheduler.get_last_lr()[0]

    def step(self, images: Tensor, labels: Tensor, weight: float | Tensor, share: float = 1.0) -> None:
        """One step of SGD on one batch. Its loss and correct answers are added to the sums. The host reads nothing.

        images [B, 3, H, W] or views [B, V, 3, H, W], labels [B]: this process's part of the batch. share: B relative to
        an equal part.
        """
        of_epoch = self.sums.steps + 1
        number = self.earlier_steps + of_epoch
        self.method.before_step(number, of_epoch)
        with self.autocast():
            terms, logits = self.loss(self.replica, images, labels, weight)
        self.name_terms(list(terms))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms.total if share == 1 else terms.total * share).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(number, of_epoch)
        self.uncounted += 1
        with torch.no_grad():
            correct = topk_correct(in_rows(logits, self.method.outputs), labels).sum(0)  # [R, 2]; in files: "hits"
            self.sums.add(len(labels), terms=torch.stack(list(terms.values())) * len(labels), hits=correct)

    def name_terms(self, terms: list[str]) -> None:
        """Keep the names of the loss's terms. UserError if the sums of a resumed epoch have others."""
        if self.sums.steps and terms != self.terms:
            error = UserError("this epoch was begun by older code, which did not record all terms of the loss: go on "
                              "from a checkpoint of the end of an epoch, or train anew with --overwrite or --version")
            error.already_reported = not processes.is_main()
            raise error
        self.terms = terms

    def means(self) -> dict:
        """The means of the sums; of the loss's terms by name. UserError if one is not finite: its sum then stays so."""
        means, steps = self.sums.means(), self.sums.steps
        means["terms"] = dict(zip(self.terms, means["terms"], strict=True))
        if wrong := [name for name, value in means["terms"].items() if not math.isfinite(value)]:
            terms = " and ".join(name for name in wrong if name != "total" or len(wrong) == 1)  # total is their sum
            raise self.diverged(f"the {terms} loss", f"steps {self.checked_steps + 1} and {steps}")
        self.checked_steps = steps
        return means

    def diverged(self, what: str, steps: str) -> UserError:
        """The error of a training in which ``what`` is not a finite number."""
        epoch = self.scheduler.last_epoch + (self.sums.steps > 0)  # the current one, or the one that has just ended
        error = UserError(
            f"the training diverged: {what} is not finite, epoch {epoch}, between {steps}, learning rate "
            f"{self.lr:g}; the last checkpoint is as it was, and a lower --lr may help")
        error.already_reported = not processes.is_main()  # all processes have the same sums
        return error

    def next_epoch(self) -> None:
        """Start an epoch: empty sums, and the learning rate of the schedule."""
        self.sums.reset()
        self.checked_steps = 0
        with warnings.catch_warnings():  # of an epoch that was resumed after its last step
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def state_dict(self) -> dict:
        """Everything that a resumed training needs. UserError if weights or momentum are not finite."""
        if self.sums.steps:
            self.means()
        count_batches(self.model, self.uncounted)
        self.uncounted = 0
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        numbers = [t for t in (*self.model.state_dict().values(), *momenta) if t is not None and t.is_floating_point()]
        finite = torch.stack(torch._foreach_norm(numbers, math.inf)).isfinite().all()
        if processes.greatest(int(not finite))():
            raise self.diverged("a weight", "the last checkpoint and this one")
        return {name: part.state_dict() for name, part in self.parts().items()} | {"terms": self.terms}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.terms = state.get("terms", ["total", "true", "group"])  # older checkpoints do not name them
        self.checked_steps = self.sums.steps

    def parts(self) -> dict:
        """Entries of a checkpoint -> what each one holds."""
        return {"state_dict": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
                "scaler": self.scaler, "tally": self.sums}


def sgd(model: nn.Module, lr: float, wd: float, milestones: list[int]):
    """-> optimizer, scheduler: Nesterov momentum 0.9, weight decay on every parameter (the paper's recipe).

    The learning rate is divided by 10 at each zero-based epoch in ``milestones``. scheduler.step() ends an epoch.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=wd, fused=True)
    for p in model.parameters():  # if GradScaler skips the first step, the optimizer does not make these itself
        if p.requires_grad:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def default_milestones(num_epochs: int) -> list[int]:
    """The zero-based epochs of a learning-rate step: a half and three quarters of the training, rounded up."""
    return [-(-num_epochs // 2), -(-3 * num_epochs // 4)]
