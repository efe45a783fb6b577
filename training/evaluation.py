"""Measuring a method on all images of a loader."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from losses import full_precision
from training.method import Method
from training.metrics import RunningSums, diversity, in_rows, name_metrics, topk_correct
from training.outputs import student_number

NO_AUTOCAST = nullcontext()


@torch.inference_mode()
def evaluate(method: Method, loader: Iterable, phase: str = "test",
             autocast: torch.autocast | nullcontext = NO_AUTOCAST,
             watch: Callable[[Iterable], Iterator] = iter,
             more_sums: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]] = lambda log_p, top1, labels: {}
             ) -> dict[str, float]:
    """Metrics over all images, each image with the same weight: top-1/5 and cross-entropy of each output, ``dist`` over
    the pairs of students, and the means of what ``method.predict`` returns besides the logits.

    loader: batches of images [B, 3, H, W] and labels [B], and its ``device``.
    watch: a generator around the batches that may end the evaluation (``Signals.watch``).
    more_sums(log_p [B, R, C], top1 [B, R], labels [B]) -> further sums over a batch, reported as means under their
        names. top1: whether the label is the output's first class.
    """
    method.model.eval()
    # On the device: a list as an index would be copied there in each batch, and the host would wait.
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
        batch = {"hits": correct.sum(0), "cross_entropy": -own.sum(0), **more_sums(log_p, correct[..., 0], labels)}
        if len(students) > 1:
            batch["dist"] = diversity(log_p[:, students].exp())
        for name, value in extras.items():  # half precision with --amp
            batch[name] = value.sum(0, dtype=torch.float64)
        sums.add(len(labels), **batch)
    means = sums.means()
    metrics = name_metrics(means, method.outputs, phase)
    return metrics | {k: v for k, v in means.items() if k not in ("hits", "cross_entropy")}
