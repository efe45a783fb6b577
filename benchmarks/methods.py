"""The time and memory of a training step: every method beside OKDDip.

    python benchmarks/methods.py                      # resnet32, groups of four, batches of 128

A step includes what a method does before and after it: PCL's moving average, the mixing weights of OKDPH. The methods
take turns. KD's teacher is a network of the same kind.
"""

import os
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler; read when torch is imported

import torch

import models
import utils
from benchmarks import compare
from benchmarks.step import CLASSES, LR, WD, peak
from methods import METHODS
from training.step import Trainer

BESIDE = "OKDDip"


def contender(name: str, args, device: torch.device) -> tuple[Trainer, tuple]:
    """-> a training of this method, and the batch that it takes."""
    network_based = {"MulStu": True} if name.endswith("-N") else {}
    method = compare.method(name, CLASSES, model=args.model, num_branches=args.num_branches, **network_based)
    if name == "KD":
        method.teacher = models.create_model(args.model, CLASSES).eval().requires_grad_(False)
    trainer = Trainer(method, LR, WD, [], device, args.amp)
    method.model.train()
    V = method.views(method.args)
    images = torch.randn(V * args.batch_size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    images = images if V == 1 else images.unflatten(0, (V, -1)).transpose(0, 1)  # [B, V, 3, 32, 32], as our loaders
    return trainer, (images, torch.randint(CLASSES, (args.batch_size,), device=device), 1.0)


def main(argv: list[str] | None = None) -> None:
    p = compare.parser(__doc__)
    p.add_argument("--model", default="resnet32", choices=models.NETWORKS, metavar="NAME", help="network")
    p.add_argument("--num_branches", default=4, type=utils.number_of_branches, help="m, students")
    p.add_argument("--rounds", default=5, type=utils.number(int, 1), help="timed steps of each method")
    compare.precision_flags(p)
    args = p.parse_args(argv)
    device = compare.start(args)
    contenders = {name: contender(name, args, device) for name in METHODS}
    steps = {name: partial(trainer.step, *batch) for name, (trainer, batch) in contenders.items()}
    compare.in_turns(steps, 1, device)  # warms up
    seconds = compare.in_turns(steps, args.rounds, device)
    print(f"{args.model}, m = {args.num_branches}, batches of {args.batch_size}, amp {args.amp}: medians of "
          f"{args.rounds} steps")
    print(compare.table(("", "ms/step", f"times as long as {BESIDE}", "peak MiB"), *(
        (name, f"{1000 * statistics.median(seconds[name]):.0f}", compare.ratio(seconds[name], seconds[BESIDE]),
         compare.mebibytes(peak(trainer, batch))) for name, (trainer, batch) in contenders.items())))


if __name__ == "__main__":
    utils.command(main)
