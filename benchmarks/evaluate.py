"""The time of an evaluation: ours against the forward passes alone, and against a plain evaluation.

    python benchmarks/evaluate.py

An OKDDip group: top-1/5 and cross-entropy of peers, leader and ensemble, diversity, mean attention. Ours is
training.evaluation.evaluate. Plain computes in NCHW, reads every metric of every batch at once, and computes the
diversity image by image. Both must find the same metrics. The forward passes read batches that are already in memory;
the difference to ours is the time for loading and measuring.

Measured (two CPU cores, torch 2.14.1): forward passes 18.98 s, ours 18.95 s (ratio 1.003), plain 22.03 s.
"""

import copy
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler; read when torch is imported

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
import utils
from benchmarks import compare
from data_loader import Cached, Split
from losses import full_precision
from runtime.device import autocast
from training.evaluation import evaluate
from training.method import Method
from training.outputs import metric


@torch.inference_mode()
def forward_only(model: nn.Module, batches: list[tuple[Tensor, Tensor]], precision: torch.autocast) -> None:
    """The forward passes of an evaluation, and nothing else."""
    model.eval()
    for images, _ in batches:
        with precision:
            model.attend(images)


@torch.inference_mode()
def plain(model: nn.Module, loader: Cached, outputs: list[str], precision: torch.autocast) -> dict[str, float]:
    """The same metrics, under the same names. outputs: leader, each peer, the peers' ensemble."""
    model.eval()
    sums, count = defaultdict(float), 0
    for images, labels in loader:
        images = images.contiguous()
        with precision:
            peers, _, leader = model.attend(images)
        peers = [full_precision(z) for z in peers.unbind(1)]
        for output, z in zip(outputs, [full_precision(leader), *peers, sum(peers) / len(peers)], strict=True):
            correct = z.topk(5, 1).indices == labels.unsqueeze(1)  # [B, 5]
            sums[metric(output, "test", "accTop1")] += 100 * correct[:, 0].sum().item()
            sums[metric(output, "test", "accTop5")] += 100 * correct.sum().item()
            sums[metric(output, "test", "loss")] += F.cross_entropy(z, labels, reduction="sum").item()
        p = torch.stack([F.softmax(z, 1) for z in peers], 1)  # [B, m-1, C]
        for image in p:
            pairs = [torch.dist(a, b).item() for a, b in combinations(image, 2)]
            sums["dist"] += sum(pairs) / len(pairs)
        count += len(labels)
    return {name: value / count for name, value in sums.items()}


def build(args, device: torch.device) -> Method:
    """OKDDip with random weights and usable BatchNorm statistics."""
    method = compare.method("OKDDip", 10, model=args.model, num_branches=args.num_branches)
    method.model.to(device)
    with torch.no_grad():  # training mode: with the initial statistics, activations double in every block
        for _ in range(10):
            method.model(torch.randn(args.batch_size, 3, 32, 32, device=device))
    return method


def parse_args(argv: list[str] | None):
    p = compare.parser(__doc__)
    p.add_argument("--model", default="resnet32", choices=models.NETWORKS, metavar="NAME", help="network")
    p.add_argument("--num_branches", default=4, type=utils.number(int, 3), help="m, students, the leader included")
    p.add_argument("--images", default=10000, type=utils.number(int, 1), help="images to evaluate")
    p.add_argument("--plain_images", default=1280, type=utils.number(int, 1), help="images of the plain evaluation")
    p.add_argument("--repeats", default=3, type=utils.number(int, 1), help="timed evaluations of each kind")
    compare.precision_flags(p)
    return p.parse_args(argv)


def compete(args, device: torch.device) -> tuple[dict[str, Callable], dict[str, list[float]]]:
    """-> the kinds of evaluation, and their seconds. Ends the program if two of them disagree."""
    method = build(args, device)
    plain_model = copy.deepcopy(method.model)
    method.model.to(memory_format=torch.channels_last)
    precision = autocast(device, args.amp)

    data = compare.random_data(0, args.images, args.seed)
    loader = Cached(data.test, data, args.batch_size, device)
    part = Cached(Split(*(a[: args.plain_images] for a in data.test)), data, args.batch_size, device)
    batches = list(loader)

    ours, tolerance = evaluate(method, part, autocast=precision), compare.tolerance(args)
    for name, value in plain(plain_model, part, list(method.outputs), precision).items():
        # rounding may swap two scores that are almost equal, so top-1 and top-5 (in %) may differ a little
        compare.must_agree(f"{name}:", ours[name], value, tolerance, 100 * tolerance if "accTop" in name else 0)

    contenders = {
        "forward passes only": lambda: forward_only(method.model, batches, precision),
        "ours": lambda: evaluate(method, loader, autocast=precision),
        "plain": lambda: plain(plain_model, part, list(method.outputs), precision),
    }
    compare.in_turns(contenders, 1, device)
    seconds = compare.in_turns(contenders, args.repeats, device)
    scale = args.images / part.num_images
    seconds["plain"] = [s * scale for s in seconds["plain"]]
    return contenders, seconds


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = compare.start(args)
    contenders, seconds = compete(args, device)
    peaks = [compare.peak_memory(run, device) for run in contenders.values()]
    plain_images = min(args.images, args.plain_images)
    print(f"OKDDip, {args.model}, batches of {args.batch_size}, amp {args.amp}: medians of {args.repeats} evaluations "
          f"of {args.images:,} images; plain: of {plain_images:,}, its time multiplied by "
          f"{args.images / plain_images:.4g}")
    print(compare.table(("", "s", "times the forward passes", "peak MiB without weights"), *(
        (name, f"{statistics.median(seconds[name]):.3f}",
         compare.ratio(seconds[name], seconds["forward passes only"]), compare.mebibytes(peak))
        for name, peak in zip(contenders, peaks, strict=True))))
    print(f"plain / ours: {compare.ratio(seconds['plain'], seconds['ours'])}")


if __name__ == "__main__":
    utils.command(main)
