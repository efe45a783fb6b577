"""The time and memory of a training step: every method, and a plain version of OKDDip.

    python benchmarks/step.py                                            # OKDDip, resnet32, batches of 128
    python benchmarks/step.py --method ONE --model vgg16 --compile
    python benchmarks/step.py --method all                               # every method beside OKDDip

Ours is a method of methods.py and its Stepper. A step includes what a method does before and after it: PCL's moving
average, the hybrid of OKDPH. KD's teacher is a network of the same kind. Plain is what most people write first: NCHW,
default SGD; loops over the students in attention, cross-entropy and divergence; top-k by ``topk``; every metric read
from the device at once. All versions start from the same weights, and every term of their first losses must be that of
ours on the CPU in float32.

Measured (two CPU cores, torch 2.14.1, --compile): plain 715 ms, 1.24 times as long as ours; ours 577 ms, compiled 576
ms. Peak 447.7, 447.7 and 441.8 MiB.
"""

import copy
import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
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
from benchmarks.cost import DATA, per_image
from methods import METHODS
from runtime.device import autocast
from training.loop import Stepper
from training.method import Method

LR, WD, T = 0.1, 5e-4, 3.0
EPOCH, NUM_EPOCHS = 40, 300  # w(e) = 0.29 in methods with a ramp-up: the losses agree only if both versions use it
TERMS = ("total", "true", "group")
WARM_UP = 2  # steps after the first; on a GPU, torch.compile traces in the first and records in the second
Version = tuple["Stepper | Plain", tuple]  # and its batch: images, labels, weight of the group's loss


# --- plain ------------------------------------------------------------------------------------------------------------


def kl(t: Tensor, z: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(z / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T**2


def plain_okddip(model, images, labels):
    """-> L_true, L_group, and the logits of each output."""
    x = model.trunks[0](images)
    h, z = zip(*(head(x) for head in model.heads), strict=True)
    z = [losses.full_precision(z_i) for z_i in z]
    peers, leader = z[:-1], z[-1]
    mean = sum(peers) / len(peers)
    L, E = ([W(h_a) for h_a in h[:-1]] for W in (model.aggregation.W_L, model.aggregation.W_E))
    targets = []
    for L_a in L:
        alpha = torch.softmax(torch.stack([(L_a * E_b).sum(1) for E_b in E], 1), 1)  # [B, m-1]
        targets.append(sum(alpha[:, b : b + 1] * z_b for b, z_b in enumerate(peers)))
    group = sum(kl(t, z_a) for t, z_a in zip(targets, peers, strict=True)) + kl(mean, leader)
    return sum(F.cross_entropy(z_i, labels) for z_i in z), group, [leader, *peers, mean]


class Plain:
    """The plain step. Used like Stepper."""

    def __init__(self, model: nn.Module, device: torch.device, amp: str, loss: Callable = plain_okddip):
        self.model, self.loss = model.to(device), loss
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

    def means(self) -> dict[str, dict]:
        return {"terms": {name: total / self.steps for name, total in zip(TERMS, self.sums, strict=False)}}


# --- measuring --------------------------------------------------------------------------------------------------------


def ours(method: Method, device: torch.device, amp: str, compiled: bool = False) -> Stepper:
    """A training of a copy of this method."""
    return Stepper(copy.deepcopy(method), LR, WD, [], device, amp, compiled)


def versions(name: str, args: Namespace, device: torch.device) -> dict[str, Version]:
    """-> "NAME", and if wanted "NAME, compiled" and "OKDDip, plain". Each has made its first step.

    Ends the program if a term of the first loss is not that of ours on the CPU in float32.
    """
    torch.manual_seed(args.seed)
    _, _, classes, size = DATA[args.dataset]
    method = compare.method(name, classes, model=args.model, num_branches=args.num_branches)
    if name == "KD":
        method.teacher = models.create_model(args.model, classes).eval().requires_grad_(False)
    V, weight = method.views(method.args), method.ramp_up(EPOCH, NUM_EPOCHS)
    images, labels = torch.randn(V * args.batch_size, 3, size, size), torch.randint(classes, (args.batch_size,))
    loaded = images.contiguous(memory_format=torch.channels_last)  # as our loaders give them
    loaded = loaded if V == 1 else loaded.unflatten(0, (V, -1)).transpose(0, 1)  # [B, V, 3, H, W]
    on_cpu = ours(method, torch.device("cpu"), "off")
    on_cpu.step(loaded, labels, weight)
    terms, loaded, labels = on_cpu.means()["terms"], loaded.to(device), labels.to(device)
    found = {name: (ours(method, device, args.amp), (loaded, labels, weight))}
    if args.compile:
        batch = loaded, labels, torch.tensor(weight, device=device)
        found[f"{name}, compiled"] = ours(method, device, args.amp, compiled=True), batch
    if name == "OKDDip" and not args.ours:
        plain = Plain(copy.deepcopy(method.model), device, args.amp)
        found[f"{name}, plain"] = plain, (images.to(device), labels, weight)
    rounding = 1e-3 if args.amp == "off" and not args.tf32 else 3e-2  # float32 has 24 bits, the others have 8 to 11
    for version, (contender, batch) in found.items():  # each term, because the group's loss is small at first
        contender.step(*batch)
        compare.must_agree(f"first loss of {version}", contender.means()["terms"], terms, rounding)
    return found


def several(contender: Stepper | Plain, batch: tuple, steps: int) -> None:
    for _ in range(steps):
        contender.step(*batch)


def peak(contender: Stepper | Plain, batch: tuple) -> int:
    """Bytes of weights, optimizer and the tensors of one step. A teacher's weights do not count."""
    contender.optimizer.zero_grad()
    state = (t for s in contender.optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
    kept = [*contender.model.parameters(), *contender.model.buffers(), *state]
    two_steps = partial(several, contender, batch, 2)  # the second begins with gradients, as in a training
    return sum(t.nbytes for t in kept) + compare.peak_memory(two_steps, batch[0].device)


def parse_args(argv: list[str] | None = None) -> Namespace:
    p = compare.parser(__doc__)
    p.add_argument("--method", default="OKDDip", choices=[*METHODS, "all"], help="the method to train")
    p.add_argument("--model", default="resnet32", choices=models.NETWORKS, metavar="NAME", help="network")
    p.add_argument("--dataset", default="CIFAR10", choices=DATA, help="size of images and number of classes")
    p.add_argument("--num_branches", default=4, type=utils.number(int, 2, high=1000), help="m, students")
    p.add_argument("--rounds", default=10, type=utils.number(int, 1), help="measurements of each version")
    p.add_argument("--steps", default=1, type=utils.number(int, 1),
                   help="steps in a measurement, with one GPU sync at its end")
    p.add_argument("--ours", action="store_true", help="do not measure the plain version; the losses must still agree")
    p.add_argument("--compile", action="store_true", help="also measure ours with torch.compile")
    p.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"), help="networks in half precision")
    p.add_argument("--tf32", action="store_true", help="TF32 in convolutions and matrix products")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = compare.start(args, args.tf32)
    found: dict[str, Version] = {}
    for name in METHODS if args.method == "all" else [args.method]:
        found |= versions(name, args, device)
    turns = {version: partial(several, *found[version], args.steps) for version in found}
    compare.in_turns(turns, -(-WARM_UP // args.steps), device)
    seconds = compare.in_turns(turns, args.rounds, device)
    beside = "OKDDip" if args.method == "all" else args.method
    print(f"{args.model}, m = {args.num_branches}, batches of {args.batch_size}, amp {args.amp}: medians of "
          f"{args.rounds} rounds")
    print(compare.table(("", "ms/step", f"times as long as {beside}", "peak MiB"), *(
        (name, f"{1000 * statistics.median(seconds[name]) / args.steps:.2f}",
         compare.ratio(seconds[name], seconds[beside]),
         # memory of CUDA graphs cannot be measured from outside
         "-" if "compiled" in name and device.type == "cuda" else f"{peak(*found[name]) / 2**20:.1f}")
        for name in found)))
    if "OKDDip" in found:
        _, _, classes, size = DATA[args.dataset]
        method = found["OKDDip"][0].method
        operations = args.batch_size * args.steps * per_image(type(method), method.args, classes, size)[0]
        rate = operations / statistics.median(seconds["OKDDip"])
        print(f"OKDDip: {rate / 1e12:.3g} * 10^12 operations/s (benchmarks/cost.py --tflops)")


if __name__ == "__main__":
    utils.command(main)
