"""The time and memory of a training step: ours against a plain version of the same step.

    python benchmarks/step.py                                            # OKDDip, resnet32, batches of 128
    python benchmarks/step.py --method ONE --model vgg16 --compile

Ours is a method of methods.py and its Trainer. Plain is what most people write first: NCHW, PyTorch's BatchNorm and
default SGD; loops over the students in attention, cross-entropy and divergence; top-k by ``topk``; every metric read
from the device at once. Both start from the same weights, and every term of their first losses must agree.

Measured (two CPU cores, torch 2.14.1, --compile): plain 715 ms; ours 577 ms, 1.24 times as fast; compiled 576 ms, 1.24.
Peak 447.7, 447.7 and 441.8 MiB. Ours: forward 208 ms, backward 384 ms, optimizer 2.8 ms, metrics 0.6 ms.
"""

import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler; read when torch is imported

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import losses
import models
import utils
from benchmarks import compare
from models.aggregation import Gate
from models.architecture import BatchNorm
from runtime.device import autocast
from training.method import Method
from training.step import Trainer

CLASSES, LR, WD, T = 10, 0.1, 5e-4, 3.0
EPOCH, NUM_EPOCHS = 40, 300  # w(e) = 0.29 in methods with a ramp-up: the losses agree only if both versions use it
TERMS = ("total", "true", "group")
WARM_UP = 3  # steps; on a GPU, torch.compile traces in the first and records in the second


# --- plain losses: model, images, labels -> L_true, L_group, [logits of each output, ...] ----------------------------


def kl(t: Tensor, z: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(z / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T**2


def mean(z: list[Tensor]) -> Tensor:
    return sum(z) / len(z)


def others(z: list[Tensor], i: int) -> Tensor:
    return mean([z_j for j, z_j in enumerate(z) if j != i])


def heads(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    h, z = zip(*(head(x) for head in model.heads), strict=True)
    return list(h), [losses.full_precision(z_i) for z_i in z]


def cross_entropies(z: list[Tensor], labels: Tensor) -> Tensor:
    return sum(F.cross_entropy(z_i, labels) for z_i in z)


def plain_okddip(model, images, labels):
    h, z = heads(model, model.trunks[0](images))
    peers, leader = z[:-1], z[-1]
    L, E = ([W(h_a) for h_a in h[:-1]] for W in (model.aggregation.W_L, model.aggregation.W_E))
    targets = []
    for L_a in L:
        alpha = torch.softmax(torch.stack([(L_a * E_b).sum(1) for E_b in E], 1), 1)  # [B, m-1]
        targets.append(sum(alpha[:, b : b + 1] * z_b for b, z_b in enumerate(peers)))
    group = sum(kl(t, z_a) for t, z_a in zip(targets, peers, strict=True)) + kl(mean(peers), leader)
    return cross_entropies(z, labels), group, [leader, *peers, mean(peers)]


def plain_one(model, images, labels):
    x = model.trunks[0](images)
    _, z = heads(model, x)
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    g = torch.softmax(F.relu(model.gate.norm(model.gate.linear(pooled))), 1)  # [B, m]
    e = sum(g[:, i : i + 1] * z_i for i, z_i in enumerate(z))
    return cross_entropies([*z, e], labels), sum(kl(e, z_i) for z_i in z), [*z, mean(z), e]


def plain_cl_ilr(model, images, labels):
    x = model.trunks[0](images)
    x.register_hook(lambda gradient: gradient / len(model.heads))
    _, z = heads(model, x)
    return cross_entropies(z, labels), sum(kl(others(z, i), z_i) for i, z_i in enumerate(z)), [*z, mean(z)]


def plain_individual(model, images, labels):
    _, z = heads(model, model.trunks[0](images))
    return cross_entropies(z, labels), torch.zeros((), device=images.device), [*z, mean(z)]


def plain_dml(model, images, labels):
    z = [losses.full_precision(head(trunk(images))[1]) for trunk, head in zip(model.trunks, model.heads, strict=True)]
    return cross_entropies(z, labels), sum(kl(others(z, i), z_i) for i, z_i in enumerate(z)), [*z, mean(z)]


def plain_baseline(model, images, labels):
    z = losses.full_precision(model(images))
    return F.cross_entropy(z, labels), torch.zeros((), device=images.device), [z]


PLAIN = {"OKDDip": plain_okddip, "ONE": plain_one, "CL-ILR": plain_cl_ilr, "Ind": plain_individual, "DML": plain_dml,
         "baseline": plain_baseline}  # a name in methods.py -> its plain loss


class Plain:
    """The plain step. Used like Trainer."""

    def __init__(self, model: nn.Module, loss: Callable, device: torch.device, amp: str):
        self.model, self.loss = with_torch_batch_norm(model).to(device), loss
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=WD)
        self.autocast = partial(autocast, device, amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.steps, self.sums = 0, []

    def step(self, images: Tensor, labels: Tensor, weight: float) -> None:
        with self.autocast():
            true, group, outputs = self.loss(self.model, images, labels)
            total = true + weight * group
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        metrics = [total.item(), true.item(), group.item()]
        for z in outputs:
            correct = z.topk(5, 1).indices == labels.unsqueeze(1)  # [B, 5]
            metrics += [correct[:, 0].float().mean().item(), correct.any(1).float().mean().item()]
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(metrics), metrics, strict=True)]
        self.steps += 1

    def means(self) -> dict[str, list]:
        means = [s / self.steps for s in self.sums]
        return {"terms": dict(zip(TERMS, means, strict=False)),
                "hits": [means[i : i + 2] for i in range(3, len(means), 2)]}


def with_torch_batch_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            kind = nn.BatchNorm1d if isinstance(module, Gate) else nn.BatchNorm2d
            norm = kind(child.num_features).to(child.weight)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            with_torch_batch_norm(child)
    return module


# --- measuring --------------------------------------------------------------------------------------------------------


def ours(method: Method, device: torch.device, amp: str, compiled: bool = False) -> Trainer:
    """A training of a copy of this method."""
    return Trainer(copy.deepcopy(method), LR, WD, [], device, amp, compiled)


def sections(trainer: Trainer, batch: tuple[Tensor, Tensor, float], steps: int) -> str:
    """The times of the parts of our step. The benchmark waits for the device between the parts."""
    stamps, loss = [], trainer.loss

    def stamp(*_):
        compare.synchronise(trainer.device)
        stamps.append(time.perf_counter())

    def stamped(*inputs):
        outputs = loss(*inputs)
        stamp()
        return outputs

    trainer.loss = stamped
    trainer.optimizer.register_step_pre_hook(stamp)
    trainer.optimizer.register_step_post_hook(stamp)
    parts = {"forward": [], "backward": [], "optimizer": [], "metrics": []}
    for step in range(WARM_UP + steps):
        stamps.clear()
        stamp()
        trainer.step(*batch)
        stamp()
        if step >= WARM_UP:
            for seconds, (begin, end) in zip(parts.values(), pairwise(stamps), strict=True):
                seconds.append(end - begin)
    return ", ".join(f"{name} {1000 * statistics.median(seconds):.1f} ms" for name, seconds in parts.items())


def peak(contender: Trainer | Plain, batch: tuple[Tensor, Tensor, float]) -> int:
    """Bytes of weights, optimizer and the tensors of one step."""
    contender.optimizer.zero_grad()

    def two_steps():  # the second begins with the gradients of the first, as in a training
        contender.step(*batch)
        contender.step(*batch)

    state = (t for s in contender.optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
    kept = [*contender.model.parameters(), *contender.model.buffers(), *state]
    return sum(t.nbytes for t in kept) + compare.peak_memory(two_steps, batch[0].device)


def parse_args(argv: list[str] | None):
    p = compare.parser(__doc__)
    p.add_argument("--method", default="OKDDip", choices=PLAIN, help="the method to train")
    p.add_argument("--model", default="resnet32", choices=models.NETWORKS, metavar="NAME", help="network")
    p.add_argument("--num_branches", default=4, type=utils.number_of_branches, help="m, students")
    p.add_argument("--pairs", default=10, type=utils.number(int, 1), help="timed steps of each version")
    p.add_argument("--compile", action="store_true", help="also measure ours with torch.compile")
    compare.precision_flags(p)
    return p.parse_args(argv)


def compete(args, device: torch.device) -> tuple[dict, dict[str, list[float]]]:
    """-> the versions, each with its batch, and the seconds of their timed steps. Ends the program if they disagree."""
    method = compare.method(args.method, CLASSES, model=args.model, num_branches=args.num_branches)
    images = torch.randn(args.batch_size, 3, 32, 32, device=device)
    labels = torch.randint(CLASSES, (args.batch_size,), device=device)
    weight = method.ramp_up(EPOCH, NUM_EPOCHS)
    batch = images.contiguous(memory_format=torch.channels_last), labels, weight  # as our loaders give it

    plain = Plain(copy.deepcopy(method.model), PLAIN[args.method], device, args.amp)
    contenders = {"plain": (plain, (images, labels, weight)), "ours": (ours(method, device, args.amp), batch)}
    if args.compile:
        weight = torch.tensor(weight, device=device)
        contenders["ours, compiled"] = ours(method, device, args.amp, compiled=True), (*batch[:2], weight)
    steps = {name: partial(contender.step, *inputs) for name, (contender, inputs) in contenders.items()}
    compare.in_turns(steps, 1, device)
    for name, (contender, _) in contenders.items():  # each term, because the group's loss is small at first
        found, expected = contender.means()["terms"], plain.means()["terms"]
        for term in TERMS:
            compare.must_agree(f"{term} loss of the first step, {name}:", found[term], expected[term],
                               compare.tolerance(args))
    compare.in_turns(steps, WARM_UP - 1, device)
    return contenders, compare.in_turns(steps, args.pairs, device)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = compare.start(args)
    contenders, seconds = compete(args, device)
    print(f"{args.method}, {args.model}, batches of {args.batch_size}, amp {args.amp}: medians of {args.pairs} steps")
    print(compare.table(("", "ms/step", "times as fast as plain", "peak MiB"), *(
        (name, f"{1000 * statistics.median(seconds[name]):.1f}", compare.ratio(seconds["plain"], seconds[name]),
         # memory of CUDA graphs cannot be measured from outside
         "-" if name == "ours, compiled" and device.type == "cuda" else compare.mebibytes(peak(*contenders[name])))
        for name in contenders)))
    method = compare.method(args.method, CLASSES, model=args.model, num_branches=args.num_branches)
    print(f"a step of ours: {sections(ours(method, device, args.amp), contenders['ours'][1], args.pairs)}")


if __name__ == "__main__":
    utils.command(main)
