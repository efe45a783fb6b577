"""Metrics: top-k accuracy, diversity, and sums over the images of an epoch, which stay on the device."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from losses import full_precision
from runtime import processes
from training.method import Method
from training.outputs import means_of, metric, student_number

NO_AUTOCAST = nullcontext()


def topk_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label is the first class, and among the first 5: logits [B, R, C], labels [B] -> bool [B, R, 2].

    The label is among the first k if more than C - k classes rank at or after it, so no sort is needed. Half precision
    has many equal scores: of two, the class with the lower number ranks first. A NaN counts as wrong.
    """
    C, labels = logits.shape[-1], labels.view(-1, 1, 1)
    own = logits.gather(-1, labels.expand(-1, logits.shape[1], 1))
    earlier = torch.arange(C, device=logits.device) < labels  # [B, 1, C]
    at_or_after = torch.where(earlier, logits < own, logits <= own).sum(-1)  # [B, R]: classes, the label's included
    return torch.stack([at_or_after > max(C - k, 0) for k in (1, 5)], -1)  # 0 if ``own`` is NaN


def in_rows(logits: dict[str, Tensor], outputs: Iterable[str]) -> Tensor:
    """Logits [B, C] by the name of their output -> [B, R, C], in the order of ``outputs``.

    ValueError if the names are not those of ``outputs``.
    """
    outputs = list(outputs)
    if logits.keys() != set(outputs):
        raise ValueError(f"the method returns the outputs {list(logits)}, but its class names {outputs}")
    return torch.stack([logits[output] for output in outputs], 1)


def diversity(probabilities: Tensor) -> Tensor:
    """"dist" (paper, Figure 4): probabilities [B, m, C] -> scalar, summed over the images.

    The Euclidean distance between the outputs of two students, averaged over all pairs.
    """
    m = probabilities.shape[1]
    pairs = torch.cdist(probabilities, probabilities, compute_mode="donot_use_mm_for_euclid_dist")  # [B, m, m]
    return pairs.sum() / (m * (m - 1))


class RunningSums:
    """Sums over the images of an epoch, kept on the device, and the numbers of images, steps and seconds so far."""

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start a new epoch, and its clock."""
        self.images, self.earlier_images, self.steps, self.sums = 0, 0, 0, {}
        self.earlier_seconds, self.start = 0.0, time.perf_counter()

    def add(self, images: int, **sums: Tensor) -> None:
        """Add one step's sums over ``images`` images: tensors of any shape, accumulated in float64."""
        self.images += images
        self.steps += 1
        for name, value in sums.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(value.shape, dtype=torch.float64, device=self.device)
            self.sums[name] += value

    def totals(self) -> tuple[int, dict[str, Tensor]]:
        """Images and sums of all processes together, on the CPU. One host sync."""
        names = sorted(self.sums)
        flat = [self.sums[name].flatten() for name in names]
        numbers = processes.total(torch.cat([*flat, flat[0].new_tensor([self.images])]).cpu())
        *parts, images = numbers.split([*(len(part) for part in flat), 1])
        return int(images), {name: part.view(self.sums[name].shape) for name, part in zip(names, parts, strict=True)}

    def means(self) -> dict[str, list]:
        """Each sum divided by the number of images, as nested lists."""
        images, sums = self.totals()
        return {name: (value / images).tolist() for name, value in sums.items()}

    @property
    def seconds(self) -> float:
        """Seconds of training in this epoch. A pause between interruption and resume does not count."""
        return self.earlier_seconds + time.perf_counter() - self.start

    def state_dict(self) -> dict:
        images, sums = self.totals() if self.steps else (0, {})
        return {"images": images, "steps": self.steps, "seconds": self.seconds, "sums": sums}

    def load_state_dict(self, state: dict) -> None:
        """Continue an epoch. The first process takes the sums of all processes, the others start from 0."""
        own = processes.is_main()
        self.steps, self.earlier_seconds, self.start = state["steps"], state["seconds"], time.perf_counter()
        self.images = self.earlier_images = state["images"] if own else 0
        self.sums = {{"hits": "correct"}.get(name, name): value.to(self.device) * own  # "hits": by older code
                     for name, value in state["sums"].items()}


def name_metrics(means: dict, outputs: Iterable[str], phase: str) -> dict[str, float]:
    """Means over the images -> metrics: accTop1 and accTop5 (in %) and loss of each output; MEAN and EMA_MEAN."""
    named, outputs = {}, list(outputs)
    for r, output in enumerate(outputs):
        top1, top5 = means["correct"][r]
        named[metric(output, phase, "accTop1")], named[metric(output, phase, "accTop5")] = 100 * top1, 100 * top5
        if "cross_entropy" in means:
            named[metric(output, phase, "loss")] = means["cross_entropy"][r]
    for mean, members in means_of(outputs).items():
        for name in ("accTop1", "accTop5"):
            values = [named[metric(output, phase, name)] for output in members]
            named[metric(mean, phase, name)] = sum(values) / len(values)
    return named


@torch.inference_mode()
def evaluate(method: Method, loader: Iterable, phase: str = "test",
             autocast: torch.autocast | nullcontext = NO_AUTOCAST,
             watch: Callable[[Iterable], Iterator] = iter,
             more_sums: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]] = lambda log_p, top1, labels: {}
             ) -> dict[str, float]:
    """Metrics over all images, each image with the same weight: top-1/5 and cross-entropy of each output, ``dist`` over
    the pairs of students, and the means of what ``method.predict`` returns besides the logits.

    loader: gives batches, images [B, 3, H, W] and labels [B], and has a ``device``.
    watch: a generator around the batches that may end the evaluation (``Signals.watch``).
    more_sums(log_p [B, R, C], top1 [B, R], labels [B]) -> further sums over a batch, reported as means under their
        names. top1: whether the label is the output's first class.
    """
    method.model.eval()
    # A tensor on the device: a list as an index would be copied there, with a host sync in each batch.
    students = torch.tensor([r for r, output in enumerate(method.outputs) if student_number(output) is not None],
                            device=loader.device)
    sums = RunningSums(loader.device)
    for images, labels in watch(loader):
        with autocast:
            named, extras = method.predict(images)
            logits = in_rows(named, method.outputs)  # [B, R, C]
        log_p = F.log_softmax(full_precision(logits), dim=-1)
        own = log_p.gather(-1, labels.view(-1, 1, 1).expand(-1, len(method.outputs), 1)).squeeze(-1)  # [B, R]
        correct = topk_correct(logits, labels)
        batch = {"correct": correct.sum(0), "cross_entropy": -own.sum(0), **more_sums(log_p, correct[..., 0], labels)}
        if len(students) > 1:
            batch["dist"] = diversity(log_p[:, students].exp())
        for name, value in extras.items():  # half precision with --amp
            batch[name] = value.sum(0, dtype=torch.float64)
        sums.add(len(labels), **batch)
    means = sums.means()
    metrics = name_metrics(means, method.outputs, phase)
    return metrics | {k: v for k, v in means.items() if k not in ("correct", "cross_entropy")}
