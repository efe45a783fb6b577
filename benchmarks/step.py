"""The time and memory of a training step: ours against a plain version of the same step.

    python benchmarks/step.py                                            # OKDDip, resnet32, batches of 128
    python benchmarks/step.py --method ONE --model vgg16 --compile

Plain is what one writes first: NCHW, PyTorch's BatchNorm and default SGD; loops over the students in attention,
cross-entropy and divergence; top-k by ``topk``; every figure read from the device at once. Both start from the same
weights, and every term of their first losses must agree.

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
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler prints nothing; read when torch is imported

import engine
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import losses
import models
import utils
from benchmarks import compare
from models.aggregation import Gate
from models.architecture import BatchNorm

CLASSES, LR, WD, T = 10, 0.1, 5e-4, 3.0
WEIGHT = 0.5  # w(e), neither 0 nor 1: the losses agree only where both use it
WARM_UP = 3  # steps; on a GPU, torch.compile traces in the first, records in the second


# --- ours: the models and losses of this repository, as the training scripts put them together ------------------------


def with_mean(z: Tensor) -> Tensor:
    return torch.cat([z, z.mean(1, keepdim=True)], 1)


def okddip(model, images, labels, weight):
    peers, targets, leader = model(images)
    return (losses.okddip_loss(peers, targets, leader, labels, weight, T),
            torch.cat([peers, leader.unsqueeze(1), peers.mean(1, keepdim=True)], 1))


def one(model, images, labels, weight):
    z, e = model(images)
    return losses.one_loss(z, e, labels, weight, T), torch.cat([with_mean(z), e.unsqueeze(1)], 1)


def cl_ilr(model, images, labels, weight):
    z, t = model(images)
    return losses.cl_ilr_loss(z, t, labels, weight, T), with_mean(z)


def individual(model, images, labels, weight):
    z = model(images)
    return losses.individual_loss(z, labels), with_mean(z)


def dml(model, images, labels, weight):
    z = model(images)
    return losses.dml_loss(z, labels, T), with_mean(z)


def baseline(model, images, labels, weight):
    z = model(images)
    return losses.individual_loss(z, labels), z.unsqueeze(1)


class Ours:
    """A training of engine.py's, step by step."""

    def __init__(self, model: nn.Module, objective: Callable, device: torch.device, amp: str, compiled: bool = False):
        method = engine.Method([], objective, predict=None, best="")
        self.trainer = engine.Trainer(model, method, LR, WD, [], device, amp, compiled)
        self.model, self.optimizer, self.tally = self.trainer.model, self.trainer.optimizer, self.trainer.tally
        self.weight = torch.tensor(WEIGHT, device=device) if compiled else WEIGHT

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.trainer.step(images, labels, self.weight)

    def mean_terms(self) -> list[float]:
        return self.tally.means()["terms"]


# --- plain: each -> L_true, L_group, [logits of a row, ...] -----------------------------------------------------------


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
    return cross_entropies(z, labels), group, [*z, mean(peers)]


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


class Plain:
    """The step as one writes it first. ``weight``: w(e); DML has no ramp-up."""

    def __init__(self, model: nn.Module, objective: Callable, device: torch.device, amp: str, weight: float):
        self.model, self.objective, self.weight = with_torch_batch_norm(model).to(device), objective, weight
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=WD)
        self.autocast = partial(torch.autocast, device.type, dtype=engine.AMP.get(amp), enabled=amp in engine.AMP)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.steps, self.sums = 0, []

    def step(self, images: Tensor, labels: Tensor) -> None:
        with self.autocast():
            true, group, rows = self.objective(self.model, images, labels)
            loss = true + self.weight * group
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        figures = [loss.item(), true.item(), group.item()]
        for z in rows:
            right = z.topk(5, 1).indices == labels.unsqueeze(1)  # [B, 5]
            figures += [right[:, 0].float().mean().item(), right.any(1).float().mean().item()]
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(figures), figures, strict=True)]
        self.steps += 1

    def mean_terms(self) -> list[float]:
        return [s / self.steps for s in self.sums[:3]]


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


# --- the methods ------------------------------------------------------------------------------------------------------


class Versions(NamedTuple):
    """build(model's name, classes, branches); the objective, ours and plain; plain_weight: w(e) where it is plain."""

    build: Callable[[str, int, int], nn.Module]
    ours: Callable
    plain: Callable
    plain_weight: float = WEIGHT


METHODS = {
    "OKDDip": Versions(models.OKDDip, okddip, plain_okddip),
    "ONE": Versions(models.ONE, one, plain_one),
    "CL-ILR": Versions(models.CLILR, cl_ilr, plain_cl_ilr),
    "Ind": Versions(models.Branches, individual, plain_individual),
    "DML": Versions(partial(models.Branches, network_based=True), dml, plain_dml, plain_weight=1.0),
    "baseline": Versions(lambda name, classes, branches: models.create_model(name, classes), baseline, plain_baseline),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def sections(model: nn.Module, objective: Callable, batch: tuple[Tensor, Tensor], amp: str, steps: int) -> str:
    """Where a step of ours spends its time: between its parts the device is waited for."""
    device, stamps = batch[0].device, []

    def stamp(*_):
        compare.synchronise(device)
        stamps.append(time.perf_counter())

    def stamped(*inputs):
        outputs = objective(*inputs)
        stamp()
        return outputs

    ours = Ours(model, stamped, device, amp)
    ours.optimizer.register_step_pre_hook(stamp)
    ours.optimizer.register_step_post_hook(stamp)
    parts = {"forward": [], "backward": [], "optimizer": [], "metrics": []}
    for step in range(WARM_UP + steps):
        stamps.clear()
        stamp()
        ours.step(*batch)
        stamp()
        if step >= WARM_UP:
            for seconds, (begin, end) in zip(parts.values(), pairwise(stamps), strict=True):
                seconds.append(end - begin)
    return ", ".join(f"{name} {1000 * statistics.median(seconds):.1f} ms" for name, seconds in parts.items())


def peak(contender: Ours | Plain, batch: tuple[Tensor, Tensor]) -> int:
    """Bytes of weights, optimizer and one step's tensors together."""
    contender.optimizer.zero_grad()

    def two_steps():  # the second begins with the gradients of the first, as a step in a training does
        contender.step(*batch)
        contender.step(*batch)

    state = (t for s in contender.optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
    kept = [*contender.model.parameters(), *contender.model.buffers(), *state]
    return sum(t.nbytes for t in kept) + compare.peak_memory(two_steps, batch[0].device)


def parse_args(argv: list[str] | None):
    p = compare.parser(__doc__)
    p.add_argument("--method", default="OKDDip", choices=METHODS, help="what is trained")
    p.add_argument("--model", default="resnet32", choices=models.NETWORKS, metavar="NAME", help="network")
    p.add_argument("--num_branches", default=4, type=utils.num_branches, help="m, students")
    p.add_argument("--pairs", default=10, type=utils.number(int, 1), help="timed steps of each version")
    p.add_argument("--compile", action="store_true", help="besides, ours with torch.compile")
    compare.precision_flags(p)
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = compare.start(args)
    build, objective, plain_objective, plain_weight = METHODS[args.method]
    model = build(args.model, CLASSES, args.num_branches)
    images = torch.randn(args.batch_size, 3, 32, 32, device=device)
    labels = torch.randint(CLASSES, (args.batch_size,), device=device)
    batch = images.contiguous(memory_format=torch.channels_last), labels  # as our loaders give it

    plain = Plain(copy.deepcopy(model), plain_objective, device, args.amp, plain_weight)
    contenders = {"plain": (plain, (images, labels)),
                  "ours": (Ours(copy.deepcopy(model), objective, device, args.amp), batch)}
    if args.compile:
        contenders["ours, compiled"] = Ours(copy.deepcopy(model), objective, device, args.amp, compiled=True), batch
    steps = {name: partial(contender.step, *inputs) for name, (contender, inputs) in contenders.items()}
    compare.in_turns(steps, 1, device)
    for name, (contender, _) in contenders.items():  # each term: beside the true loss, the group's is small at first
        for term, a, b in zip(losses.Terms._fields, contender.mean_terms(), plain.mean_terms(), strict=True):
            compare.must_agree(f"{term} loss of the first step, {name}:", a, b, compare.tolerance(args))
    compare.in_turns(steps, WARM_UP - 1, device)
    seconds = compare.in_turns(steps, args.pairs, device)

    print(f"{args.method}, {args.model}, batches of {args.batch_size}, amp {args.amp}: medians of {args.pairs} steps")
    print(compare.table(("", "ms/step", "times as fast as plain", "peak MiB"), *(
        (name, f"{1000 * statistics.median(seconds[name]):.1f}", compare.ratio(seconds["plain"], seconds[name]),
         # the memory of CUDA graphs is not seen from outside
         "-" if name == "ours, compiled" and device.type == "cuda" else compare.mebibytes(peak(*contenders[name])))
        for name in contenders)))
    print(f"a step of ours: {sections(model, objective, batch, args.amp, args.pairs)}")


if __name__ == "__main__":
    utils.command(main)
